"""Tables replaced in a query's own text: every place one may stand, and nothing else."""

from __future__ import annotations

import pytest

from metalayer.errors import UsageError
from metalayer.lineage.splice import spliced

PAST = {
    ("gold", "f"): "old f",
    ("gold", "D"): "old D",
    ("db", "gold", "f"): "other",
    ("f",): "bare",
}


def past(query: str) -> str:
    return spliced(query, "the query", PAST.get)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select * from gold.f", 'select * from (old f) as "f"'),
        ("SELECT * FROM Gold.F -- gold.f\n", 'SELECT * FROM (old f) as "f" -- gold.f\n'),
        ("select x.a from gold.f as x", "select x.a from (old f) as x"),
        ("select * from gold.f x (a, b)", "select * from (old f) x (a, b)"),
        ('select * from "gold"."D"', 'select * from (old D) as "D"'),
        ("select * from gold.d", "select * from gold.d"),
        ("select gold.f.a, f.b, gold.F.* from gold.f", 'select f.a, f.b, F.* from (old f) as "f"'),
        ("select db.gold.f.a from db.gold.f", 'select f.a from (other) as "f"'),
        ("select 'gold.f' as é, a from gold.f", "select 'gold.f' as é, a from (old f) as \"f\""),
        ("table gold.f", 'select * from (old f) as "f"'),
        (
            "select * from (gold.f join gold.f as g using (a))",
            'select * from ((old f) as "f" join (old f) as g using (a))',
        ),
        (
            "select (select max(a) from gold.f) from generate_series(1, 2) as f",
            'select (select max(a) from (old f) as "f") from generate_series(1, 2) as f',
        ),
        (
            "select a from gold.f union all (select gold.f.a from gold.f limit 1)",
            'select a from (old f) as "f" union all (select f.a from (old f) as "f" limit 1)',
        ),
    ],
)
def test_a_table_is_replaced_wherever_it_is_read(query: str, expected: str) -> None:
    assert past(query) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        # Its own body reads the table, what comes behind reads the clause.
        (
            "with f as (select * from f) select * from f",
            "(bare)",
        ),
        ("with recursive f as (select * from f) select * from f", ""),
        ("with g as (with f as (select 1) select * from f) select * from g, f", "g, (bare)"),
        ("with a as (select * from f), f as (select 1) select * from f", "from (bare)"),
        ("with f as (select 1), a as (select * from f) select * from a", ""),
        ('with "F" as (select 1) select * from f', "from (bare)"),
    ],
)
def test_a_name_that_a_with_clause_gives_is_not_a_table(query: str, expected: str) -> None:
    replaced = past(query)
    assert replaced.count("(bare)") == (1 if expected else 0)
    assert expected in replaced


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("select * from gold.f tablesample bernoulli (1)", "TABLESAMPLE"),
        ("select * from only gold.f", "ONLY"),
        ("select 1; select 2", "one SELECT"),
        ("values (1)", "one SELECT"),
        ("explain select 1", "one SELECT"),
        ("", "one SELECT"),
        ("delete from gold.f returning *", "one SELECT"),
        ("with x as (delete from gold.f returning *) select * from x", "that reads"),
        ("select * into t from gold.f", "that reads"),
        ("select * from gold.f for update", "that reads"),
        ("select * from", "The query cannot be read as of another time: Expected table name"),
    ],
)
def test_what_has_no_past_is_refused(query: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as raised:
        past(query)
    assert raised.value.next_step
