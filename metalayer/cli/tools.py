"""Commands beside the data: generate, doctor, and the version."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from metalayer.console import as_typed, say_next, shown, stdout, working
from metalayer.errors import UsageError


class Split(StrEnum):
    """How `generate` spreads an export over files."""

    file = "file"
    month = "month"


def generate(
    rows: Annotated[int, typer.Option("--rows", min=1, help="Records per export.")],
    months: Annotated[int, typer.Option("--months", min=1, help="Months they are spread over.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to; made if missing.")],
    dirt: Annotated[
        float, typer.Option("--dirt", min=0, max=1, help="Share of rows with something wrong.")
    ] = 0.02,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other data.")] = 0,
    start: Annotated[
        str | None,
        typer.Option("--start", metavar="YYYY-MM", help="The first month.", show_default="2024-01"),
    ] = None,
    split: Annotated[
        Split, typer.Option("--split", help="One file per export, or one per month and export.")
    ] = Split.file,
) -> None:
    """Write the four exports with made-up data at any size: same arguments, same bytes."""
    start_month = _month(start) if start is not None else None
    from metalayer.sample import Generated
    from metalayer.sample import generate as generate_exports

    console = stdout()

    def written(file: Generated) -> None:
        size = file.file.stat().st_size
        console.print(
            Text(f"{shown(file.file)}  {file.rows:,} rows  {_size(size)}"), soft_wrap=True
        )

    with working(f"Writing {rows:,} rows per export"):
        files = generate_exports(
            out,
            rows=rows,
            months=months,
            dirt=dirt,
            seed=seed,
            start_month=start_month,
            split=split.value,
            written=written,
        )
    suffix = "*" if any(f.file.suffix == ".gz" for f in files) else ""
    say_next((f"land {out}/*/*.csv{suffix}", "takes them in"))


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check Python, settings, folders, disk and PostgreSQL, and say how to mend what is wrong.

    Ends with exit code 1 if anything is. With --json it also gives database_url, for psql and
    other clients: the embedded PostgreSQL answers there while a command runs.
    """
    from metalayer.cli.formats import json_text
    from metalayer.doctor import examine

    with working("Looking") as tell:
        found = examine(tell)
    if as_json:
        checks = ",\n    ".join(json_text(check) for check in found.checks)
        sys.stdout.write(
            f'{{\n  "ok": {json_text(found.is_well)},\n'
            f'  "database_url": {json_text(found.database_url)},\n'
            f'  "checks": [\n    {checks}\n  ]\n}}\n'
        )
    else:
        console = stdout()
        width = max(len(check.name) for check in found.checks)
        for check in found.checks:
            mark = ("✓ ", "green") if check.ok else ("✗ ", "bold red")
            name = check.name.ljust(width + 2)
            console.print(Text.assemble(mark, name, shown(check.detail)), soft_wrap=True)
            if check.fix:
                fix = Text.assemble(" " * 2, ("fix: ", "bold"), as_typed(check.fix))
                console.print(fix, soft_wrap=True)
    if not found.is_well:
        raise typer.Exit(1)


def version() -> str:
    """The version of MetaLayer, of the installed package or of this clone."""
    try:
        return importlib.metadata.version("metalayer")
    except importlib.metadata.PackageNotFoundError:
        from metalayer.settings import PROJECT_ROOT

        project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])


def _month(text: str) -> date:
    match = re.fullmatch(r"(\d{4})-(0[1-9]|1[0-2])", text.strip())
    if match is None or match[1] == "0000":
        raise UsageError(f"--start {text} is not a month", "Write it as YYYY-MM, like 2025-01.")
    return date(int(match[1]), int(match[2]), 1)


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
