"""What an export is to the generator: its columns, how many rows, and how any of them are made."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from metalayer.sample.draws import Ints


@dataclass(frozen=True)
class Export:
    """One of the four exports.

    Attributes:
        name: system and file stem, such as `erp/orders`.
        columns: the header, in order.
        delivered: the month (numbered from 0) in whose export each row is delivered.
        texts: clean rows of the given numbers: a text column per header column, and beside them
            helpers whose names start with `_`, which are never written.
        is_snapshot: whether a file is the whole state at a month, so that it is always one file a
            month and its name carries the month.
    """

    name: str
    columns: tuple[str, ...]
    delivered: Ints
    texts: Callable[[Ints], pl.DataFrame]
    is_snapshot: bool = False
