"""Words on the command line become the tables they name."""

import pytest

from metalayer.catalog import catalog
from metalayer.cli.selection import select_tables
from metalayer.errors import UsageError


def chosen(*words: str) -> set[str]:
    return select_tables(words, catalog()) or set()


def test_no_word_means_all() -> None:
    assert select_tables([], catalog()) is None
    assert select_tables([" ,"], catalog()) is None


def test_tables_layers_and_patterns() -> None:
    assert chosen("gold.fact_sales") == {"gold.fact_sales"}
    assert chosen("bronze") == {t for t in catalog().specs if t.startswith("bronze.")}
    assert chosen("gold.agg_*") == {"gold.agg_daily_sales", "gold.agg_monthly_sales"}
    assert chosen("*.orders") == {"bronze.orders", "silver.orders"}


def test_several_words_add_up() -> None:
    both = {"gold.fact_sales", "silver.orders"}
    assert chosen("gold.fact_sales", "silver.orders") == both
    assert chosen("gold.fact_sales, silver.orders") == both


def test_a_plus_takes_what_is_upstream_or_downstream_along() -> None:
    assert chosen("+silver.orders") == {"bronze.orders", "silver.orders"}
    upstream = chosen("+gold.fact_sales")
    assert {"bronze.erp_sales", "silver.erp_sales", "gold.dim_customer"} <= upstream
    assert "gold.agg_daily_sales" not in upstream
    downstream = chosen("bronze.erp_sales+")
    assert {"silver.erp_sales", "gold.fact_sales", "gold.agg_daily_sales"} <= downstream
    assert "bronze.orders" not in downstream
    assert chosen("+silver.orders+") == chosen("+silver.orders") | chosen("silver.orders+")


@pytest.mark.parametrize("word", ["gold.nosuch", "platinum", "gold.x_*", "+nosuch", "+"])
def test_an_unknown_word_lists_the_tables(word: str) -> None:
    with pytest.raises(UsageError) as raised:
        chosen("gold", word)
    assert "gold.fact_sales" in raised.value.next_step


def test_a_slip_of_the_pen_is_recognised() -> None:
    with pytest.raises(UsageError, match=r"Did you mean gold\.fact_sales"):
        chosen("gold.fact_sale")
