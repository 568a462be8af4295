"""How counts and lists read in a sentence, to people.

Does not belong here: where and in what colours it is printed (`console.py`), or what is said.
"""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """A number with its noun, whose plural ends in s: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def named(items: Sequence[str], limit: int, total: int | None = None) -> str:
    """The first of some items, and how many there are beside: "a, b and 12 more".

    Args:
        items: At least as many as are to be named.
        limit: How many are named.
        total: How many there are, where not all are in `items`.
    """
    more = (len(items) if total is None else total) - min(limit, len(items))
    first = ", ".join(items[:limit])
    return f"{first} and {more:,} more" if more > 0 else first
