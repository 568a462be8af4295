"""Words to tables: `gold.fact_sales`, `gold`, `gold.agg_*`, `+gold.fact_sales`, `silver.orders+`.

A plus before a word takes along all tables it is made from or points at, one behind it all that
are made from it or point at it. Does not belong here: what is done with the tables.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from metalayer.catalog import LAYERS, Catalog
from metalayer.errors import UsageError


def select_tables(words: Iterable[str], tables: Catalog) -> set[str] | None:
    """The tables that the words name; None when there are no words, which means all.

    Args:
        words: each may hold several, separated by commas.

    Raises:
        UsageError: for a word that names nothing, listing the tables.
    """
    each = [part.strip() for word in words for part in word.split(",") if part.strip()]
    if not each:
        return None
    return set().union(*(_select(word, tables) for word in each))


def _select(word: str, tables: Catalog) -> set[str]:
    name = word.removeprefix("+").removesuffix("+")
    found = {
        table
        for table, spec in tables.specs.items()
        if spec.layer == name or fnmatchcase(table, name)
    }
    if not found:
        raise _unknown(name, tables)
    chosen = set(found)
    if word.startswith("+"):
        chosen |= _upstream(found, tables)
    if word.endswith("+"):
        chosen |= _downstream(found, tables)
    return chosen


def _upstream(of: set[str], tables: Catalog) -> set[str]:
    reached: set[str] = set()
    ahead = set(of)
    while ahead:
        reached |= ahead
        ahead = {name for table in ahead for name in tables.upstream(table)} - reached
    return reached


def _downstream(of: set[str], tables: Catalog) -> set[str]:
    reached = set(of)
    for table in tables.specs:  # upstream before downstream
        if reached & set(tables.upstream(table)):
            reached.add(table)
    return reached


def _unknown(name: str, tables: Catalog) -> UsageError:
    layers = ", ".join(LAYERS)
    if "*" in name or "?" in name or "[" in name:
        return UsageError(
            f"No table matches '{name}'",
            f"Layers are {layers}; tables are {', '.join(tables.specs)}.",
        )
    bare = [table for table in tables.specs if table.partition(".")[2] == name]
    likely = bare or difflib.get_close_matches(name, tables.specs, n=2)
    hint = f"Did you mean {' or '.join(likely)}? " if likely else ""
    return UsageError(
        f"There is no table or layer '{name}'",
        f"{hint}Layers are {layers}; tables are {', '.join(tables.specs)}.",
    )
