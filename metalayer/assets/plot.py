"""A series with what is usual, as a small picture that stands in Dagster's metadata.

Does not belong here: what is plotted.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

_WIDTH, _HEIGHT, _EDGE = 640, 180, 14
_LABEL = 16


def plot(series: Sequence[tuple[str, float]], low: float, high: float) -> str:
    """An SVG as a data URI: a line, the band of the usual, and the last point marked.

    Args:
        series: Label and figure of each point, the one that is told of last.
    """
    values = [value for _, value in series]
    bottom, top = min(0.0, *values, low), max(*values, high, 1e-9)
    inner = _HEIGHT - 2 * _EDGE - _LABEL

    def x(number: int) -> float:
        return _EDGE + (_WIDTH - 2 * _EDGE) * number / max(1, len(series) - 1)

    def y(value: float) -> float:
        return _EDGE + inner * (1 - (value - bottom) / (top - bottom))

    line = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in enumerate(values))
    last = len(values) - 1
    baseline = _HEIGHT - _EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<rect x="{_EDGE}" y="{y(high):.1f}" width="{_WIDTH - 2 * _EDGE}" '
        f'height="{max(1.0, y(low) - y(high)):.1f}" fill="#d6e4f5"/>',
        f'<polyline points="{line}" fill="none" stroke="#2b5c9e" stroke-width="1.5"/>',
        f'<circle cx="{x(last):.1f}" cy="{y(values[last]):.1f}" r="4.5" fill="#c0392b"/>',
        f'<text x="{_EDGE}" y="{baseline}" fill="#444444">{series[0][0]}</text>',
        f'<text x="{_WIDTH - _EDGE}" y="{baseline}" fill="#444444" text-anchor="end">'
        f"{series[last][0]}</text>",
        "</svg>",
    ]
    encoded = base64.b64encode("".join(parts).encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"
