"""Pictures of the dictionary's graphs, as SVG drawn from numbers: boxes by rank, lines between.

Landed files stand on the left and gold on the right. Colours come from the page's style sheet, so
that a picture is dark on a dark page. Does not belong here: which columns a picture has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape

from metalayer.lineage.columns import Origin

_LETTER = 7.3  # width of a letter of the page's font for code, at 12 pixels
_ROW, _HEAD = 20, 26
_BETWEEN_RANKS, _BETWEEN_BOXES = 52, 16
_MARGIN = 8
_SWEEPS = 6


@dataclass
class _Box:
    name: str
    rows: list[str]
    rank: int
    x: float = 0
    y: float = 0

    @property
    def width(self) -> float:
        return max(len(self.name), *(len(row) for row in self.rows), 0) * _LETTER + 24

    @property
    def height(self) -> float:
        return _HEAD + len(self.rows) * _ROW + (6 if self.rows else 0)

    def middle(self, row: str) -> float:
        """How far down the line of a row begins; of the box itself, where it has no rows."""
        if row not in self.rows:
            return self.y + _HEAD / 2
        return self.y + _HEAD + self.rows.index(row) * _ROW + _ROW / 2


def draw(
    edges: Iterable[tuple[Origin, Origin]],
    ranks: Mapping[str, int],
    link: Callable[[Origin], str | None],
    here: Origin | None,
    label: str,
) -> str:
    """An SVG of columns in their tables, or of tables alone where the columns' names are empty.

    Args:
        edges: (from, to).
        ranks: Table -> how far to the right it stands.
        link: Where a click on a column (or table: an empty name) leads.
        here: What is marked, if anything; it is drawn even where it is tied to nothing.
        label: What the picture shows, for those who cannot see it.
    """
    lines = sorted(set(edges))
    marked = () if here is None else (here,)
    boxes = _boxes([*marked, *(end for line in lines for end in line)], ranks)
    columns = _placed(boxes, lines)
    width = max(b.x + b.width for b in boxes.values()) + _MARGIN
    height = max(b.y + b.height for b in boxes.values()) + _MARGIN
    parts = [_line(boxes, *line, here) for line in lines]
    parts += [_drawn(box, link, here) for rank in columns for box in rank]
    return (
        f'<div class="graph" tabindex="0"><svg role="img" aria-label="{escape(label)}" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">'
        f"{''.join(parts)}</svg></div>"
    )


def _boxes(places: Iterable[Origin], ranks: Mapping[str, int]) -> dict[str, _Box]:
    boxes: dict[str, _Box] = {}
    for place in places:
        box = boxes.setdefault(place.table, _Box(place.table, [], ranks[place.table]))
        if place.column and place.column not in box.rows:
            box.rows.append(place.column)
    return boxes


def _placed(boxes: Mapping[str, _Box], lines: list[tuple[Origin, Origin]]) -> list[list[_Box]]:
    """Give every box its place: ranks from left to right, in each the order with fewer crossings.

    The order is by the mean height of a box's neighbours, a few times over (the barycentre method
    of Sugiyama, Tagawa and Toda, 1981).
    """
    columns: list[list[_Box]] = [[] for _ in range(max(b.rank for b in boxes.values()) + 1)]
    for box in sorted(boxes.values(), key=lambda b: b.name):
        columns[box.rank].append(box)
    columns = [column for column in columns if column]
    near: dict[str, list[str]] = {name: [] for name in boxes}
    for start, end in lines:
        near[start.table].append(end.table)
        near[end.table].append(start.table)
    x: float = _MARGIN
    for column in columns:
        for box in column:
            box.x = x
        x += max(box.width for box in column) + _BETWEEN_RANKS
    _stack(columns)
    for sweep in range(_SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            column.sort(key=lambda b: _mean([boxes[n] for n in near[b.name]] or [b]))
            _stack(columns)
    for box in boxes.values():
        box.rows.sort(key=lambda row, name=box.name: _height_of(boxes, lines, Origin(name, row)))  # type: ignore[misc]
    return columns


def _stack(columns: list[list[_Box]]) -> None:
    """One below the other, each column around the same middle line."""
    heights = [sum(b.height + _BETWEEN_BOXES for b in column) for column in columns]
    for column, height in zip(columns, heights, strict=True):
        y = _MARGIN + (max(heights) - height) / 2
        for box in column:
            box.y = y
            y += box.height + _BETWEEN_BOXES


def _mean(near: list[_Box]) -> float:
    return sum(b.y + b.height / 2 for b in near) / len(near)


def _height_of(
    boxes: Mapping[str, _Box], lines: list[tuple[Origin, Origin]], place: Origin
) -> tuple[float, str]:
    """How high the boxes stand that a row is tied to, so that lines cross little."""
    others = [
        boxes[(end if start == place else start).table]
        for start, end in lines
        if place in (start, end)
    ]
    return (_mean(others) if others else 0.0, place.column)


def _line(boxes: Mapping[str, _Box], start: Origin, end: Origin, here: Origin | None) -> str:
    a, b = boxes[start.table], boxes[end.table]
    x1, y1, y2 = a.x + a.width, a.middle(start.column), b.middle(end.column)
    # Within a table the line leaves and comes back on the right.
    x2 = b.x + b.width if a is b else b.x
    bend = 30 if a is b else (x2 - x1) / 2
    towards = x2 + bend if a is b else x2 - bend
    mark = " near" if here in (start, end) else ""
    return (
        f'<path class="line{mark}" d="M{x1:.1f},{y1:.1f} C{x1 + bend:.1f},{y1:.1f} '
        f'{towards:.1f},{y2:.1f} {x2:.1f},{y2:.1f}"/>'
    )


def _drawn(box: _Box, link: Callable[[Origin], str | None], here: Origin | None) -> str:
    is_here = here == Origin(box.name, "")
    parts = [
        f'<rect class="box rank{min(box.rank, 3)}{" here" if is_here else ""}" x="{box.x:.1f}" '
        f'y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="6"/>',
        _text(box.x + 12, box.y + 17, box.name, "table", link(Origin(box.name, ""))),
    ]
    for row in box.rows:
        place = Origin(box.name, row)
        y = box.middle(row)
        if place == here:
            parts.append(
                f'<rect class="row here" x="{box.x + 4:.1f}" y="{y - 10:.1f}" '
                f'width="{box.width - 8:.1f}" height="{_ROW}" rx="4"/>'
            )
        parts.append(_text(box.x + 12, y + 4, row, "column", link(place)))
    return "".join(parts)


def _text(x: float, y: float, text: str, kind: str, target: str | None) -> str:
    drawn = f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
    return f'<a href="{escape(target)}">{drawn}</a>' if target else drawn
