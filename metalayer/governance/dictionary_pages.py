"""The dictionary as pages: reStructuredText for the site generator, and the records to search.

Links between pages are the generator's own references, so that a broken one fails the build.
Pictures, which it does not draw, are put in as they are. Does not belong here: how a site is made
of the pages (`dictionary_site.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import groupby
from textwrap import indent
from typing import Any

from metalayer.contracts.contract import REJECTS_ALWAYS_TOLERATED, TableSpec
from metalayer.governance.dictionary import ColumnEntry, Dictionary, TableEntry
from metalayer.governance.dictionary_graph import draw
from metalayer.lineage.columns import Origin

_CODE = re.compile(r"`([^`]+)`")
_MARKS = re.compile(r"([\\*`|_])")
_NOTHING = "\u2013"


def index_page(entries: Dictionary) -> str:
    """The first page: the graph of tables, and all of them by layer with what they mean."""
    steps = [
        (Origin(source, ""), Origin(name, ""))
        for name, sources in entries.reads.items()
        for source in sources
    ]
    drawn = draw(
        steps,
        entries.ranks,
        lambda place: _target(entries, place),
        None,
        "All tables, from the landed files to gold",
    )
    parts = [
        _heading("Dictionary", "="),
        "What each table and column means, where it comes from and who reads it. Derived from the "
        "contracts and SELECTs.",
        _raw(drawn),
    ]
    for layer, members in groupby(entries.tables.values(), key=lambda e: e.spec.layer):
        rows = [
            (f":doc:`{e.spec.full_name}`", _first_sentence(entries, e.spec), rst(_owner(e.spec)))
            for e in members
        ]
        parts += [_heading(layer.capitalize(), "-"), _table(("Table", "Meaning", "Owner"), rows)]
    pages = "\n".join(f"   {name}" for name in entries.tables)
    parts.append(f".. toctree::\n   :hidden:\n\n{pages}")
    return _page(parts)


def table_page(entries: Dictionary, entry: TableEntry) -> str:
    """Everything about one table."""
    spec = entry.spec
    overview = [
        (
            f":ref:`{rst(c.spec.name)} <{_label(spec, c.spec.name)}>`",
            f"``{c.spec.type}``",
            " ".join([_sentence(c.spec.meaning), *(f":mark:`{m}`" for m in _marks(c))]),
        )
        for c in entry.columns
    ]
    parts = [
        _heading(spec.full_name, "="),
        *_prose(entries, spec.description),
        _facts(_facts_of_table(entries, entry)),
        _heading("Lineage", "-"),
        _raw(_table_graph(entries, entry)),
        _heading("Columns", "-"),
        _table(("Column", "Type", "Meaning"), overview),
        _heading("Rules and checks", "-"),
        *_rules_and_checks(entry),
        _heading("Each column", "-"),
    ]
    for column in entry.columns:
        parts += _column(entries, spec, column)
    if entry.select is not None:
        parts += [_heading("SELECT", "-"), f".. code-block:: sql\n\n{indent(entry.select, '   ')}"]
    return _page(parts)


def search_records(entries: Dictionary) -> list[dict[str, Any]]:
    """What can be searched for: each table and column, with what it means and where it stands."""
    records = []
    for name, entry in entries.tables.items():
        # The page shows what the docstring's code marks stand around.
        meaning = _CODE.sub(r"\1", " ".join(entry.spec.description.split()))
        records.append(
            {"name": name, "words": _words(name), "meaning": meaning, "tags": entry.spec.owner,
             "url": f"{name}.html", "table": ""}
        )  # fmt: skip
        records += [
            {
                "name": c.spec.name,
                "words": _words(c.spec.name),
                "meaning": c.spec.meaning,
                "tags": " ".join(_marks(c)),
                "url": f"{name}.html#{anchor(entry.spec, c.spec.name)}",
                "table": name,
            }
            for c in entry.columns
        ]
    return records


def anchor(spec: TableSpec, column: str) -> str:
    """The id of a column on the page of its table, as the generator makes it from the label."""
    return re.sub(r"[^a-z0-9]+", "-", _label(spec, column)).strip("-")


def rst(text: str) -> str:
    """Text that means nothing to reStructuredText."""
    return _MARKS.sub(r"\\\1", text)


# --- a table ------------------------------------------------------------------------------------


def _facts_of_table(entries: Dictionary, entry: TableEntry) -> Iterator[tuple[str, str]]:
    spec = entry.spec
    yield "Layer", spec.layer
    yield "Grain", f"one row per {rst(', '.join(spec.key))}"
    yield "Partition", f"the month of {rst(spec.month_column)}"
    yield "Owner", rst(_owner(spec))
    yield "Due", rst(str(spec.due)) if spec.due else "no month needs to come"
    yield "Fresh within", _days(spec.fresh_within)
    yield "Rejects", _rejects(spec)
    yield "Made from", _links(entries, entry.sources)
    yield "Read by", _links(entries, entry.consumers)
    if entry.views:
        yield "Views", ", ".join(f"``{view}``" for view in entry.views)
    if spec.source is not None:
        # A snapshot says all, a delta what is new.
        yield "Landed files", f"``{spec.source.pattern}`` ({spec.source.kind})"
    if spec.path is not None:
        yield "Contract", f"``metalayer/contracts/{spec.path.parent.name}/{spec.path.name}``"
    if entry.select is not None:
        file = f"sql/{spec.layer}/{spec.name}.sql"
        yield "SELECT", f"`{rst(file)} <{file}>`__"


def _rules_and_checks(entry: TableEntry) -> list[str]:
    rules = [rst(rule) for rule in entry.rules]
    checks = [
        f"``{check.name}``: {rst(check.meaning)}" + ("" if check.is_blocking else " It only warns.")
        for check in entry.checks
    ]
    found = ["What must hold for each row, beside the rules of its columns:", _list(rules)]
    return [*(found if rules else ()), "Checked whenever months are published:", _list(checks)]


def _table_graph(entries: Dictionary, entry: TableEntry) -> str:
    """The tables that this one is made from, near and far, and those made from it."""
    name = entry.spec.full_name
    steps: set[tuple[str, str]] = set()
    back, onwards = [name], [name]
    while back:
        table = back.pop()
        found = {(source, table) for source in entries.reads.get(table, ())}
        back += [source for source, _ in found - steps]
        steps |= found
    while onwards:
        table = onwards.pop()
        found = {(table, reader) for reader, read in entries.reads.items() if table in read}
        onwards += [reader for _, reader in found - steps]
        steps |= found
    return draw(
        [(Origin(a, ""), Origin(b, "")) for a, b in steps],
        entries.ranks,
        lambda place: _target(entries, place),
        Origin(name, ""),
        f"What {name} is made from, and what is made from it",
    )


# --- a column -----------------------------------------------------------------------------------


def _column(entries: Dictionary, spec: TableSpec, column: ColumnEntry) -> list[str]:
    c = column.spec
    place = Origin(spec.full_name, c.name)
    facts = [
        ("Type", f"``{c.type}``, {'may be empty' if c.nullable else 'required'}"),
        ("Rules", rst("; ".join(column.rules))),
        ("Marked", ", ".join(f":mark:`{mark}`" for mark in _marks(column))),
        ("Read as empty", ", ".join(f"``{token}``" for token in c.null_tokens)),
        ("Computed as", f"``{c.derived}``" if c.derived else ""),
        ("Made from", _columns(entries, column.upstream)),
        ("Made into", _columns(entries, column.downstream)),
    ]
    parts = [
        f".. _{_label(spec, c.name)}:",
        _heading(c.name, "~"),
        _sentence(c.meaning),
        _facts((name, text) for name, text in facts if text),
    ]
    steps = entries.lineage(place)
    if steps:
        drawn = draw(
            steps,
            entries.ranks,
            lambda other: _target(entries, other),
            place,
            f"Columns that {spec.full_name}.{c.name} is made from, and those made from it",
        )
        summary = f"<summary>Lineage of {c.name}</summary>"
        parts.append(_raw(f"<details class='lineage'>{summary}{drawn}</details>"))
    return parts


def _marks(column: ColumnEntry) -> list[str]:
    """What a column is marked as: "personal: email", "key"."""
    marks = ["key"] if column.spec.is_key else []
    for name, value in column.tags.items():
        said = {"pii": "personal", "free_text": "free text"}.get(name, name.replace("_", " "))
        marks.append(f"{said}: {value.replace('_', ' ')}" if value else said)
    return marks


def _columns(entries: Dictionary, places: Sequence[Origin]) -> str:
    return ", ".join(_column_link(entries, place) for place in places)


def _column_link(entries: Dictionary, place: Origin) -> str:
    entry = entries.tables.get(place.table)
    if entry is None:
        return f"``{place.table}`` column ``{place.column}``"
    shown = rst(f"{place.table}.{place.column}")
    return f":ref:`{shown} <{_label(entry.spec, place.column)}>`"


# --- words --------------------------------------------------------------------------------------


def _target(entries: Dictionary, place: Origin) -> str | None:
    """The address of a table or column; landed files and views have no page of their own."""
    entry = entries.tables.get(place.table)
    if entry is None:
        owner = next((n for n, e in entries.tables.items() if place.table in e.views), None)
        return f"{owner}.html" if owner else None
    hash_and_id = f"#{anchor(entry.spec, place.column)}" if place.column else ""
    return f"{place.table}.html{hash_and_id}"


def _label(spec: TableSpec, column: str) -> str:
    # What is MetaLayer's own begins with an underscore, which no id can.
    kind = "own" if column.startswith("_") else "column"
    return f"{kind}.{spec.full_name}.{column.lstrip('_')}"


def _sentence(text: str) -> str:
    return rst(text) + ("" if text.endswith(".") else ".")


def _words(name: str) -> str:
    return re.sub(r"[._]+", " ", name).strip()


def _owner(spec: TableSpec) -> str:
    return spec.owner.removeprefix("team:")


def _days(time: timedelta) -> str:
    days = time / timedelta(days=1)
    return f"{days:g} day{'' if days == 1 else 's'}"


def _rejects(spec: TableSpec) -> str:
    limit = f"up to {spec.max_reject_rate:.0%} of a month's rows may be quarantined"
    if spec.max_rejects is not None:
        limit += f", and no more than {spec.max_rejects:,} rows"
    return f"{limit}; {REJECTS_ALWAYS_TOLERATED} always may" if spec.max_reject_rate else limit


def _first_sentence(entries: Dictionary, spec: TableSpec) -> str:
    paragraph = " ".join(spec.description.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z)`]\.) ", paragraph)[0]
    return _inline(entries, sentence)


def _prose(entries: Dictionary, text: str) -> list[str]:
    return [_inline(entries, " ".join(p.split())) for p in re.split(r"\n\s*\n", text)]


def _inline(entries: Dictionary, text: str) -> str:
    """A docstring's text, in which what stands in backquotes is code, or the name of a table."""
    parts = _CODE.split(text)
    # Every other part stood in backquotes.
    for number in range(0, len(parts), 2):
        parts[number] = rst(parts[number])
    for number in range(1, len(parts), 2):
        name = parts[number]
        # A role must be set apart from the letters around it.
        parts[number] = f"\\ :doc:`{name}`\\ " if name in entries.tables else f"\\ ``{name}``\\ "
    return "".join(parts)


def _links(entries: Dictionary, names: Iterable[str]) -> str:
    links = (f":doc:`{n}`" if n in entries.tables else f"``{n}``" for n in names)
    return ", ".join(links) or _NOTHING


# --- reStructuredText ---------------------------------------------------------------------------


def _page(parts: Iterable[str]) -> str:
    return ".. role:: mark\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _heading(text: str, line: str) -> str:
    return f"{rst(text)}\n{line * (len(rst(text)) + 1)}"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f":{name}: {text}" for name, text in facts)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", "   :class: wide", ""]
    for row in (head, *rows):
        lines += [f"   {'*' if number == 0 else ' '} - {cell}" for number, cell in enumerate(row)]
    return "\n".join(lines)


def _raw(html: str) -> str:
    return f".. raw:: html\n\n{indent(html, '   ')}"
