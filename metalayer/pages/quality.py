"""The quality page: how good the tables are, at first sight and down to the line of a file.

    /                       scores of all tables, flow, rules, due dates, times
    /table/<layer.name>     one table: its scores, why, and over time
    /quarantine/<table>     rows that broke a rule: file, line, column, value (masked)

Live: what is shown is asked again every few seconds. Does not belong here: what a score is
(`operations/quality.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nicegui import app, run, ui

from metalayer.console import ago
from metalayer.operations.quality import DIMENSIONS, Quality, Rule, Score, TableQuality, Trend
from metalayer.pages.sight import Sight

_REFRESH_SECONDS = 5.0
_GOOD, _FAIR = 0.99, 0.9
_SHOWN_RULES, _SHOWN_SLOW = 12, 10
_LAYERS = ("bronze", "silver", "gold")

_STYLE = Path(__file__).with_name("quality.css")


def level(value: float | None) -> str:
    """How good a score is, as a class of the style."""
    if value is None:
        return "none"
    return "good" if value >= _GOOD else "fair" if value >= _FAIR else "poor"


def percent(value: float | None) -> str:
    """A score as it is written: never rounded up to whole, or down to nothing."""
    if value is None:
        return "-"
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    return f"{min(99.9, max(0.1, 100 * value)):.1f}%"


_MARKS = {"good": "✓", "fair": "!", "poor": "✗", "none": ""}


def chip(value: float | None) -> dict[str, str]:
    """A score for a cell: text, class, and a mark, as colour alone says nothing to some."""
    of = level(value)
    return {"text": f"{_MARKS[of]} {percent(value)}".strip(), "level": of}


def serve(sight: Sight, host: str, port: int, ready: Callable[[], None]) -> None:
    """Serve the pages until the process is ended."""

    @ui.page("/", title="Quality · MetaLayer")
    async def overview() -> None:
        _frame(None)
        await _live(lambda: sight.quality(), _overview)

    @ui.page("/table/{name}", title="Table · MetaLayer")
    async def table(name: str) -> None:
        _frame(name)

        def ask() -> Any:
            found = sight.quality()
            if isinstance(found, str):
                return found
            trends = sight.trends(name)
            return trends if isinstance(trends, str) else (found, trends)

        await _live(ask, lambda told: _table_page(name, *told))

    @ui.page("/quarantine/{name}", title="Quarantine · MetaLayer")
    async def quarantine(name: str, column: str | None = None, rule: str | None = None) -> None:
        _frame(f"{name}: quarantine")
        await _live(
            lambda: sight.rejects(name, column, rule),
            lambda told: _quarantine_page(name, column, rule, *told),
        )

    app.on_startup(ready)
    ui.run(
        host=host,
        port=port,
        show=False,
        reload=False,
        dark=None,
        title="MetaLayer",
        favicon="◆",
        show_welcome_message=False,
        uvicorn_logging_level="warning",
        storage_secret=None,
    )


def _frame(place: str | None) -> None:
    ui.add_css(_STYLE.read_text(encoding="utf-8"))
    dark = ui.dark_mode(None)
    with ui.element("header").classes("bar"), ui.element("div"):
        ui.link("◆ MetaLayer quality", "/").classes("link title").props("aria-label=Overview")
        if place:
            ui.label(f"/ {place}").classes("dim").style("overflow-wrap: anywhere; min-width: 0")
        ui.space()
        ui.button(icon="dark_mode", on_click=lambda: dark.set_value(not dark.value)).props(
            "flat round dense aria-label='Light or dark'"
        )


async def _live(ask: Callable[[], Any], show: Callable[[Any], None]) -> None:
    """Show what is asked, and again whenever it has changed."""
    body = ui.element("main").classes("page")
    shown: list[Any] = [None]

    async def refresh() -> None:
        told = await run.io_bound(ask)
        if told is None or _same(told, shown[0]):
            return
        shown[0] = told
        body.clear()
        with body:
            if isinstance(told, str):
                _trouble(told)
            else:
                show(told)

    await refresh()
    ui.timer(_REFRESH_SECONDS, refresh)


def _same(told: Any, before: Any) -> bool:
    """Whether nothing is to be drawn anew: only the moment it was asked at differs."""
    return bool(before is not None and _timeless(told) == _timeless(before))


def _timeless(told: Any) -> Any:
    if isinstance(told, Quality):
        return (told.tables, told.rules, told.flow, told.files, told.refused)
    if isinstance(told, tuple):
        return tuple(map(_timeless, told))
    return told


def _trouble(said: str) -> None:
    with ui.element("section").classes("card"):
        ui.label(said).classes("title")
        ui.label("It is asked again every few seconds.").classes("dim")
        ui.label("metalayer doctor").classes("dim").style("font-family: monospace")


def _overview(told: Quality) -> None:
    if not any(t.status.months for t in told.tables):
        _nothing_yet(told)
        return
    ui.label(told.said).classes("title").style("font-size: 20px").props("role=status")
    _figures(told)
    _tables(told.tables)
    with ui.element("section").classes("card"):
        ui.label("From files to gold").classes("title")
        ui.label("Rows, and what was lost to what. Each is in the ledger.").classes("dim")
        _flow(told)
    with ui.element("div").classes("two"):
        _rules(told.rules)
        _due(told.tables)
        _slowest(told.tables)
        _phases(told.phases)


def _nothing_yet(told: Quality) -> None:
    with ui.element("section").classes("card"):
        ui.label(told.said).classes("title").style("font-size: 20px")
        ui.label("Land exports and build, or begin with the sample:").classes("dim")
        for command in ("metalayer land FILE...", "metalayer build", "metalayer demo"):
            with ui.element("div").style("margin-top: 6px"), ui.element("code"):
                ui.label(command).style("display: inline")
        if told.refused:
            ui.label(f"{told.refused:,} files were refused: metalayer ledger says why.").classes(
                "dim"
            )


def _figures(told: Quality) -> None:
    quarantined = sum(rule.rows for rule in told.rules)
    late = sum(t.status.late_since is not None for t in told.tables)
    with ui.element("section").classes("cards").props("aria-label=Figures"):
        for name, value, of in (
            ("Score of all tables", percent(told.score), level(told.score)),
            ("Tables late", f"{late:,}", "poor" if late else "good"),
            ("Rows in quarantine", f"{quarantined:,}", "fair" if quarantined else "good"),
            ("Files refused", f"{told.refused:,}", "poor" if told.refused else "good"),
            ("Files taken in", f"{told.files.get('loaded', 0):,}", "none"),
        ):
            with ui.element("div").classes("card"):
                ui.label(name).classes("dim")
                ui.label(value).classes(f"figure {of}").style("background: none")


def _tables(tables: Sequence[TableQuality]) -> None:
    worst = sorted(tables, key=lambda t: (t.worst, t.score or 0.0))
    columns: list[dict[str, Any]] = [
        {"name": "name", "label": "Table", "field": "name", "align": "left", "sortable": True},
        {"name": "score", "label": "Score", "field": "score", "align": "right"},
        *(
            {"name": name, "label": name.capitalize(), "field": name, "align": "right"}
            for name in DIMENSIONS
        ),
        {"name": "rows", "label": "Rows", "field": "rows", "align": "right", "sortable": True},
    ]
    rows = [
        {
            "name": t.name,
            "score": chip(t.score),
            **{name: {**chip(s.value), "why": s.why} for name, s in t.scores.items()},
            "rows": f"{t.status.rows:,}",
            "unusual": t.anomalies,
        }
        for t in worst
    ]
    with ui.element("section").classes("card"):
        with ui.row().classes("items-center w-full").style("gap: 12px"):
            ui.label(f"{len(tables):,} tables, the worst first").classes("title")
            ui.space()
            wanted = ui.input(placeholder="Filter").props(
                "dense outlined clearable aria-label='Filter tables'"
            )
        found = ui.table(
            columns=columns, rows=rows, row_key="name", pagination={"rowsPerPage": 25}
        ).classes("w-full")
        found.props("flat dense wrap-cells=false")
        wanted.bind_value_to(found, "filter")
        for name in ("score", *DIMENSIONS):
            found.add_slot(
                f"body-cell-{name}",
                '<q-td :props="props"><span class="chip" :class="props.value.level" '
                ':title="props.value.why">{{ props.value.text }}</span></q-td>',
            )
        found.add_slot(
            "body-cell-name",
            '<q-td :props="props"><a class="link" :href="\'/table/\' + props.value">'
            '{{ props.value }}</a> <span v-if="props.row.unusual" class="chip fair" '
            'title="metalayer anomalies">unusual</span></q-td>',
        )
        found.on(
            "rowClick",
            lambda event: ui.navigate.to(f"/table/{event.args[1]['name']}"),
            [[], ["name"]],
        )


def _flow(told: Quality) -> None:
    names = list(dict.fromkeys(n for link in told.flow for n in (link.source, link.target)))
    losses = {link.target for link in told.flow if link.is_loss}
    colours = {"bronze": "#a8703a", "silver": "#8795a8", "gold": "#c99a2e"}
    with ui.element("div").classes("sideways").props("tabindex=0"):
        ui.echart(
            {
                "tooltip": {"trigger": "item"},
                "series": [
                    {
                        "type": "sankey",
                        "left": 4,
                        "right": 130,
                        "nodeGap": 10,
                        "draggable": False,
                        "layoutIterations": 32,
                        "label": {"color": "inherit", "fontSize": 11},
                        "lineStyle": {"color": "gradient", "opacity": 0.35},
                        "data": [
                            {
                                "name": name,
                                "itemStyle": {
                                    "color": "#c0392b"
                                    if name in losses
                                    else colours.get(name.partition(".")[0], "#4f7cac")
                                },
                            }
                            for name in names
                        ],
                        "links": [
                            {"source": link.source, "target": link.target, "value": link.rows}
                            for link in told.flow
                        ],
                    }
                ],
            }
        ).style(f"height: {max(320, 22 * len(names))}px; width: 100%").props(
            "role=img aria-label='Rows from files to gold'"
        )
    if losses:
        lost: dict[str, int] = {}
        for link in told.flow:
            if link.is_loss:
                lost[link.target] = lost.get(link.target, 0) + link.rows
        said = ", ".join(f"{rows:,} {name}" for name, rows in lost.items())
        duplicates = told.files.get("duplicate", 0)
        more = f"; {duplicates:,} files were copies of others" if duplicates else ""
        ui.label(f"Lost on the way: {said}{more}.").classes("dim")


def _rules(rules: Sequence[Rule]) -> None:
    with ui.element("section").classes("card"):
        ui.label("Rules that rows break").classes("title")
        if not rules:
            ui.label("No row is in quarantine.").classes("dim")
        for rule in rules[:_SHOWN_RULES]:
            of = f"{rule.column} {rule.rule}".strip()
            address = (
                f"/quarantine/{rule.table}?column={quote(rule.column)}&rule={quote(rule.rule)}"
            )
            with ui.row().classes("w-full no-wrap items-baseline").style("gap: 8px"):
                ui.link(of, address).classes("link").style("overflow-wrap: anywhere; min-width: 0")
                ui.label(rule.table).classes("dim")
                ui.space()
                ui.label(f"{rule.rows:,}").style("font-variant-numeric: tabular-nums")
        if len(rules) > _SHOWN_RULES:
            ui.label(f"and {len(rules) - _SHOWN_RULES:,} more; metalayer rejects").classes("dim")


def _due(tables: Sequence[TableQuality]) -> None:
    late = sorted(
        (t for t in tables if t.status.due_month),
        key=lambda t: (t.status.late_since is None, t.scores["freshness"].value or 0.0),
    )
    with ui.element("section").classes("card"):
        ui.label("Freshness against what is due").classes("title")
        for t in late[:_SHOWN_RULES]:
            with ui.row().classes("w-full no-wrap items-baseline").style("gap: 8px"):
                ui.link(t.name, f"/table/{t.name}").classes("link")
                ui.space()
                if t.status.late_since is not None:
                    said = f"{t.status.due_month} late, has {t.status.last_month or 'nothing'}"
                else:
                    said = f"has {t.status.due_month}"
                ui.label(said).classes("dim")
                ui.label("✗" if t.status.late_since else "✓").classes(
                    f"chip {'poor' if t.status.late_since else 'good'}"
                ).style("min-width: 0")
        if len(late) > _SHOWN_RULES:
            ui.label(f"and {len(late) - _SHOWN_RULES:,} more; metalayer status").classes("dim")


def _slowest(tables: Sequence[TableQuality]) -> None:
    slow = sorted((t for t in tables if t.seconds > 0), key=lambda t: -t.seconds)[:_SHOWN_SLOW]
    with ui.element("section").classes("card"):
        ui.label("Slowest tables").classes("title")
        ui.label("Seconds in which what is published was built").classes("dim")
        _bars([(t.name, t.seconds) for t in slow])


def _phases(phases: Mapping[str, float]) -> None:
    with ui.element("section").classes("card"):
        ui.label("Where time goes").classes("title")
        ui.label("Seconds of the last runs, by phase").classes("dim")
        _bars(list(phases.items()))


def _bars(values: Sequence[tuple[str, float]]) -> None:
    most = max((seconds for _, seconds in values), default=0.0)
    if not most:
        ui.label("Nothing yet.").classes("dim")
    for name, seconds in values:
        with ui.row().classes("w-full no-wrap items-center").style("gap: 8px"):
            ui.label(name).style("width: 45%; overflow-wrap: anywhere")
            with ui.element("div").style("flex: 1; min-width: 0"):
                ui.element("div").style(
                    f"height: 8px; border-radius: 4px; background: var(--accent); "
                    f"width: {max(1.0, 100 * seconds / most):.1f}%"
                )
            ui.label(f"{seconds:,.1f}").style("font-variant-numeric: tabular-nums")


def _table_page(name: str, told: Quality, trends: tuple[Trend, Trend]) -> None:
    found = next((t for t in told.tables if t.name == name), None)
    if found is None:
        _trouble(f"There is no table {name}")
        return
    status = found.status
    with ui.row().classes("items-baseline").style("gap: 12px"):
        ui.label(name).classes("title").style("font-size: 20px; overflow-wrap: anywhere")
        value = chip(found.score)
        ui.label(value["text"]).classes(f"chip {value['level']}")
    published = ago(status.last_published) if status.last_published else "never"
    ui.label(
        f"{status.rows:,} rows in {status.months:,} months, last published {published}"
    ).classes("dim")
    with ui.element("div").classes("cards"):
        for dimension in DIMENSIONS:
            _score_card(dimension, found.scores[dimension])
    for month, problem in list(status.failed_months.items())[:_SHOWN_RULES]:
        with ui.element("section").classes("card"):
            ui.label(f"{month} failed").classes("title")
            ui.label(problem.partition("\n")[0]).classes("dim")
    with ui.element("div").classes("two"):
        _trend("By month of the data", trends[0])
        _trend("By day of the publish", trends[1])
        _rules([rule for rule in told.rules if rule.table == name])
        with ui.element("section").classes("card"):
            ui.label("More").classes("title")
            for command in (f"metalayer rejects {name}", f"metalayer versions {name}",
                            f"metalayer trace {name} --where ..."):  # fmt: skip
                with ui.element("div").style("margin-top: 6px"), ui.element("code"):
                    ui.label(command).style("display: inline")
            ui.link("All rows in quarantine", f"/quarantine/{name}").classes("link")


def _score_card(dimension: str, score: Score) -> None:
    with ui.element("div").classes("card"):
        ui.label(dimension.capitalize()).classes("dim")
        value = chip(score.value)
        ui.label(value["text"] or "-").classes(f"figure {value['level']}").style("background: none")
        ui.label(score.why).classes("dim").style("overflow-wrap: anywhere")
        if score.next_step:
            with ui.element("code"):
                ui.label(score.next_step).style("display: inline")


def _trend(title: str, trend: Trend) -> None:
    with ui.element("section").classes("card"):
        ui.label(title).classes("title")
        if not trend.labels:
            ui.label("Nothing yet.").classes("dim")
            return
        ui.echart(
            {
                "tooltip": {"trigger": "axis"},
                "legend": {"bottom": 0, "textStyle": {"color": "#8a94a3"}},
                "grid": {"left": 48, "right": 12, "top": 12, "bottom": 56},
                "xAxis": {"type": "category", "data": list(trend.labels)},
                "yAxis": {
                    "type": "value",
                    "max": 100,
                    "scale": True,
                    "axisLabel": {"formatter": "{value}%"},
                },
                "series": [
                    {
                        "name": name,
                        "type": "line",
                        "symbolSize": 5,
                        "data": [None if v is None else round(100 * v, 2) for v in values],
                    }
                    for name, values in trend.scores.items()
                ],
            }
        ).style("height: 260px; width: 100%").props(f"role=img aria-label='{title}'")


def _quarantine_page(
    name: str, column: str | None, rule: str | None, count: int, rows: Sequence[Any]
) -> None:
    of = f"{column or ''} {rule}".strip() if rule else "any rule"
    ui.label(f"{name}: {of}").classes("title").style("font-size: 20px; overflow-wrap: anywhere")
    ui.label(
        f"{count:,} rows. Values of tables with personal columns are masked; "
        f"metalayer rejects {name} --unmasked shows them to who may see them."
    ).classes("dim")
    with ui.element("section").classes("card plain"):
        ui.table(
            columns=[
                {"name": each, "label": label, "field": each, "align": "left"}
                for each, label in (
                    ("where", "File and line"),
                    ("month", "Month"),
                    ("column", "Column"),
                    ("rule", "Rule"),
                    ("value", "Value"),
                    ("raw", "Line as it was landed"),
                )
            ],
            rows=[
                {
                    "id": number,
                    "where": f"{row.file or '-'}:{row.line or '-'}",
                    "month": row.month or "-",
                    "column": row.column or "",
                    "rule": row.rule,
                    "value": row.value if row.value is not None else "",
                    "raw": (row.raw or "")[:200],
                }
                for number, row in enumerate(rows)
            ],
            row_key="id",
            pagination={"rowsPerPage": 25},
        ).classes("w-full").props("flat dense")
    ui.link(f"Back to {name}", f"/table/{name}").classes("link")
