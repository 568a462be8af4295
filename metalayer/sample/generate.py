"""From a number of rows to files: which export, which file, which rows, which dirt.

What a row says is decided in crm.py and erp.py, and what can be wrong with it in dirt.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from metalayer.errors import UsageError
from metalayer.sample import crm, erp
from metalayer.sample.calendar import Calendar, calendar_from, usual_start
from metalayer.sample.dirt import KINDS, joined
from metalayer.sample.draws import Draws, Ints
from metalayer.sample.export import Export
from metalayer.sample.files import EXTRA_COLUMN, FLAVOURS, PLAIN, Flavour, writing
from metalayer.sample.oddities import oddities

# Rows made at a time: bounds the memory whatever the size of the export.
BATCH = 200_000
# A correction is at most so many lines behind what it corrects.
REPEATED_WITHIN = 500
# Of a thousand rows, those delivered in their own month's file, one month late and two months late.
LATENESS = (982, 15, 3)

CHANNELS = ("web", "store", "phone")


@dataclass(frozen=True)
class Generated:
    """A file that was written; `rows` are its data records: no header, no blank lines."""

    file: Path
    rows: int


def generate(
    out: Path,
    *,
    rows: int,
    months: int,
    dirt: float = 0.02,
    seed: int = 0,
    start_month: date | None = None,
    split: Literal["file", "month"] = "file",
    written: Callable[[Generated], None] | None = None,
) -> list[Generated]:
    """Write the four exports below `out`, as `<system>/<export>….csv`.

    The same arguments give the same bytes, whatever the day and the number of cores. Files of the
    same name are replaced, others are left alone.

    Args:
        out: a folder, made if missing.
        rows: data records per export; the snapshots of `crm_customers` have about so many in all.
        months: how many months the rows are spread over.
        dirt: share of the rows, 0 to 1, that have something wrong. About half of those still load.
            With 0 everything is clean.
        seed: another seed gives other people, orders and mistakes.
        start_month: the first month; by default 2024-01, or earlier if the last would be after
            2025-12.
        split: `file` writes each delta export as one plain file. `month` writes a file a month,
            with some rows a month or two late; if there is dirt, the files also differ in
            encoding, delimiter, header and so on, and some are empty, broken or sent twice.
        written: called with each file as soon as it is complete.

    Raises:
        UsageError: for counts below 1, a share outside 0..1, or months that end after 2025-12.
    """
    if rows < 1:
        raise UsageError(f"{rows} rows cannot be generated", "Ask for 1 row or more.")
    if not 0 <= dirt <= 1:
        raise UsageError(f"A dirt share of {dirt} is impossible", "Give a share from 0 to 1.")
    calendar = calendar_from(start_month or usual_start(months), months)
    draws = Draws(seed)
    done: list[Generated] = []
    for export in _exports(rows, calendar, draws, is_split=split == "month"):
        for generated in _files(out, export, calendar, draws, dirt, is_split=split == "month"):
            done.append(generated)
            if written is not None:
                written(generated)
    return done


def _exports(rows: int, calendar: Calendar, draws: Draws, *, is_split: bool) -> Iterator[Export]:
    """The four exports, one at a time, so that what only an earlier one needed can be let go."""

    def late(export: str) -> Ints:
        if not is_split:
            return np.zeros(rows, dtype=np.int64)
        return draws.choose(f"late {export}", LATENESS, np.arange(rows, dtype=np.int64))

    past = crm.history(rows, calendar, draws)
    yield crm.customers(past, calendar, draws, late("customers"))
    yield crm.crm_customers(rows, past, calendar, draws)
    orders = erp.book(rows, past, calendar, draws)
    yield erp.orders_export(orders, calendar, draws, late("orders"))
    sales = erp.invoice(orders, calendar, draws)
    yield erp.sales_export(orders, sales, calendar, draws, late("erp_sales"))


def _files(
    out: Path, export: Export, calendar: Calendar, draws: Draws, dirt: float, *, is_split: bool
) -> Iterator[Generated]:
    """Write the files of one export."""
    order = np.arange(len(export.delivered), dtype=np.int64)
    if not (is_split or export.is_snapshot):
        path = out / f"{export.name}.csv"
        yield _write_file(path, PLAIN, Delivery(export, order, 0, len(order)), draws, dirt)
        return
    order = np.argsort(export.delivered, kind="stable").astype(np.int64)
    edges = np.searchsorted(export.delivered[order], np.arange(calendar.months + 1))
    for month, label in enumerate(calendar.labels):
        flavours = FLAVOURS[export.name] if is_split and dirt > 0 else (PLAIN,)
        flavour = flavours[month % len(flavours)]
        delivery = Delivery(export, order, int(edges[month]), int(edges[month + 1]))
        path = out / f"{export.name}_{label}{flavour.suffix}"
        yield _write_file(path, flavour, delivery, draws, dirt)
    if is_split and dirt > 0:
        few = export.texts(order[: edges[1]][:20])
        for path, count in oddities(out, export, few, calendar.labels, int(edges[1]), len(order)):
            yield Generated(path, count)


@dataclass(frozen=True)
class Delivery:
    """The rows of one file: `order[first:end]`, where `order` are all rows as delivered."""

    export: Export
    order: Ints
    first: int
    end: int

    def lines(
        self, start: int, end: int, columns: list[str], flavour: Flavour, draws: Draws, dirt: float
    ) -> pl.Series:
        """The lines at the positions `start` to `end` of `order`, dirt included."""
        rows = self.order[start:end]
        clean = _with_extra(self.export.texts(rows), columns)
        lines = clean.select(joined(columns, flavour.delimiter).alias("line")).to_series()
        chance = draws.unit(f"dirty {self.export.name}", rows)
        dirty = np.flatnonzero(chance < dirt).astype(np.int64)
        if not len(dirty):
            return lines
        replaced, texts = self._dirty_lines(start + dirty, columns, flavour, draws)
        # Each line comes from the clean ones or, further on, from the dirty ones.
        source = np.arange(len(rows), dtype=np.int64)
        source[dirty[replaced]] = len(rows) + np.arange(len(replaced))
        return pl.concat([lines, texts]).gather(pl.Series(source))

    def _dirty_lines(
        self, positions: Ints, columns: list[str], flavour: Flavour, draws: Draws
    ) -> tuple[Ints, pl.Series]:
        """Dirtied lines, and which of the `positions` of `order` each belongs to."""
        kinds = KINDS[self.export.name]
        rows = self.order[positions]
        kind = draws.choose(f"kind {self.export.name}", [each.weight for each in kinds], rows)
        chance = draws.bits(f"variant {self.export.name}", rows)
        texts, replaced = [], []
        for number, each in enumerate(kinds):
            where = np.flatnonzero(kind == number).astype(np.int64)
            earliest = self.first if each.repeats == "file" else 0
            if each.repeats != "no":
                where = where[positions[where] > earliest]
            if not len(where):
                continue
            source = positions[where]
            if each.repeats != "no":
                reach = REPEATED_WITHIN if each.repeats == "file" else source
                back = (chance[where] >> np.uint64(8)).astype(np.int64)
                source = source - 1 - back % np.minimum(reach, source - earliest)
            clean = self.export.texts(self.order[source]).with_columns(_hash=chance[where])
            texts.append(each.lines(_with_extra(clean, columns), columns, flavour.delimiter))
            replaced.append(where)
        if not texts:
            return np.empty(0, dtype=np.int64), pl.Series(dtype=pl.String)
        return np.concatenate(replaced), pl.concat(texts)


def _write_file(
    path: Path, flavour: Flavour, delivery: Delivery, draws: Draws, dirt: float
) -> Generated:
    columns = [*delivery.export.columns, *([EXTRA_COLUMN] if flavour.extra_column else [])]
    columns = flavour.order(columns)
    with writing(path, flavour) as write:
        write(pl.Series([flavour.delimiter.join(flavour.spell(columns))]))
        for start in range(delivery.first, delivery.end, BATCH):
            end = min(start + BATCH, delivery.end)
            write(delivery.lines(start, end, columns, flavour, draws, dirt))
    return Generated(path, delivery.end - delivery.first)


def _with_extra(texts: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """The rows, with the column that no contract knows if the file has it."""
    if EXTRA_COLUMN not in columns:
        return texts
    channel = (pl.col("_hash") % len(CHANNELS)).replace_strict(
        list(range(len(CHANNELS))), list(CHANNELS), return_dtype=pl.String
    )
    return texts.with_columns(channel.alias(EXTRA_COLUMN))
