"""What the pages say is true: their files are built, their commands run, their output compared.

A page is executed as a newcomer would: in a copy of the project, its files written as they stand
there, its commands in order, in processes of their own. Fenced blocks say what they are: a path
behind the language is a file to write, `sh` are commands, `text` is what the last of them prints.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from metalayer.catalog import LAYERS
from metalayer.settings import ENV_PREFIX, PROJECT_ROOT, Settings

_PROJECT = ("metalayer", "sql", "pyproject.toml", "dagster.yaml", "workspace.yaml")
_PAGES = sorted(
    p.relative_to(PROJECT_ROOT)
    for p in (*PROJECT_ROOT.glob("*.md"), *(PROJECT_ROOT / "docs").rglob("*.md"))
)
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Words of `run` itself; every other is a command of metalayer.
_OF_RUN = {"test", "check", "advisories"}

# Asked inside the copy: what Dagster shows of a table, and what became of its checks.
_INQUIRY = """
import json, sys
import dagster as dg
import metalayer
from metalayer.assets.headless import dagster_instance
from metalayer.definitions import defs
from metalayer.settings import Settings
from metalayer.warehouse.server import warehouse_server

key = dg.AssetKey(sys.argv[1].split("."))
(spec,) = [s for s in defs.resolve_all_asset_specs() if s.key == key]
graph = defs.resolve_asset_graph()
settings = Settings.load()
evaluated = {}
with (
    warehouse_server(settings) as server,
    dagster_instance(settings, server.dagster_url) as instance,
):
    for run in reversed(instance.get_runs()):
        for entry in instance.all_logs(run.run_id):
            event = entry.dagster_event
            if event is not None and event.event_type_value == "ASSET_CHECK_EVALUATION":
                found = event.asset_check_evaluation_data
                if found.asset_key == key:
                    evaluated[found.check_name] = found.passed
    months = sorted(instance.get_materialized_partitions(key))
schema = spec.metadata["dagster/column_schema"].schema
print(json.dumps({
    "package": metalayer.__file__,
    "description": spec.description,
    "group": spec.group_name,
    "owners": list(spec.owners),
    "upstream": sorted(d.asset_key.to_user_string() for d in spec.deps),
    "columns": {c.name: c.description for c in schema.columns},
    "declared_checks": sorted(k.name for k in graph.asset_check_keys if k.asset_key == key),
    "checks": evaluated,
    "months": months,
}))
"""


@dataclass
class Page:
    """A page's blocks, and a copy of the project in which they are executed.

    Attributes:
        places: Folder that the page names -> where it is here.
    """

    blocks: list[tuple[str, str]]
    project: Path
    environment: Mapping[str, str]
    places: Mapping[str, str] = field(default_factory=dict)
    printed: str = ""
    compared: int = 0
    ran: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, str]:
        """Path -> text of every file the page gives."""
        found = (title.partition(" ")[::2] for title, _ in self.blocks)
        texts = (text for _, text in self.blocks)
        return {path: text for (_, path), text in zip(found, texts, strict=True) if path}

    def execute(self) -> None:
        """Write the page's files, then run its commands and compare what they print."""
        for name, text in self.files.items():
            path = self.project / name
            assert not path.exists(), f"{name} is already there"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for title, text in self.blocks:
            if title == "sh":
                self._run(text)
            elif title == "text":
                self.compared += 1
                assert _lines(self.printed) == _lines(text), self.ran[-1]

    def _run(self, commands: str) -> None:
        for line in commands.splitlines():
            if line.startswith("export METALAYER_HOME="):
                continue  # this test's home is one of its own already
            here = line
            for named, place in self.places.items():
                here = here.replace(named, place)
            first, *words = shlex.split(here)
            assert first == "./run", line
            self.printed = self.process("-m", "metalayer", *words)
            self.ran.append(line)

    def process(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.project,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
        return done.stdout

    def shown(self, table: str) -> dict[str, Any]:
        """What Dagster knows of a table."""
        found: dict[str, Any] = json.loads(self.process("-c", _INQUIRY, table).splitlines()[-1])
        assert Path(found["package"]).is_relative_to(self.project)
        return found

    def untouched(self) -> dict[str, str]:
        """Fingerprints of the project's files besides those of the page."""
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.project.rglob("*"))
            if path.is_file()
            and (name := str(path.relative_to(self.project))) not in self.files
            and "__pycache__" not in path.parts
        }


def _lines(text: str) -> list[str]:
    """The words of each line: how far apart columns stand, and the rules between, are not seen."""
    return [words for line in text.splitlines() if (words := " ".join(line.split()).strip("─━ "))]


def _blocks(page: Path) -> list[tuple[str, str]]:
    return _BLOCK.findall((PROJECT_ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture
def opened(tmp_path: Path, database: str, dagster_url: str) -> Iterator[Callable[[str], Page]]:
    """Open a page in a fresh copy of the project, on a database of its own."""
    project = tmp_path / "clone"
    project.mkdir()
    for name in _PROJECT:
        source, target = PROJECT_ROOT / name, project / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    environment = _environment(project, tmp_path, database)
    yield lambda page: Page(_blocks(Path(page)), project, environment)


def _environment(project: Path, tmp_path: Path, database: str) -> dict[str, str]:
    outside = ("PYTEST", "PYTHON", "DAGSTER", ENV_PREFIX)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(outside)},
        "PYTHONPATH": str(project),
        "PYTHONDONTWRITEBYTECODE": "1",
        f"{ENV_PREFIX}HOME": str(tmp_path / "home"),
        f"{ENV_PREFIX}DATABASE_URL": database,
        "COLUMNS": "100",
    }


def _comments(database: str, table: str) -> dict[str | None, str | None]:
    """Column (None: the table itself) -> its comment in PostgreSQL."""
    url = database.replace("+psycopg2", "", 1)
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("select obj_description(%s::regclass)", (table,))
        comments: dict[str | None, str | None] = {None: cursor.fetchone()[0]}
        cursor.execute(
            "select attname, col_description(attrelid, attnum) from pg_attribute "
            "where attrelid = %s::regclass and attnum > 0 and not attisdropped",
            (table,),
        )
        comments |= dict(cursor.fetchall())
    connection.close()
    return comments


def test_the_page_on_adding_a_table(opened: Callable[[str], Page], database: str) -> None:
    page = opened("docs/add-a-table.md")
    before = page.untouched()
    assert _added(page) == [
        "metalayer/contracts/gold/sales_by_region.py",
        "sql/gold/sales_by_region.sql",
    ]
    page.execute()
    assert page.compared == 1
    assert page.ran[-1] == "./run build"
    assert page.printed == ""
    assert page.untouched() == before
    table = page.shown("gold.sales_by_region")
    assert table["group"] == "gold"
    assert table["owners"] == ["team:sales-data"]
    assert table["upstream"] == ["gold/dim_customer", "gold/fact_orders"]
    assert table["checks"] == {
        "contract_satisfied": True,
        "keys_unique": True,
        "rows_conserved": True,
        "money_conserved": True,
        "looks_usual": True,
    }
    assert table["declared_checks"] == sorted([*table["checks"], "due_month_present"])
    assert table["months"] == ["2025-01"]
    _is_documented(table, _comments(database, "gold.sales_by_region"))


def test_the_page_on_adding_a_source(opened: Callable[[str], Page], database: str) -> None:
    page = opened("docs/add-a-source.md")
    before = page.untouched()
    assert _added(page) == ["metalayer/contracts/silver/returns.py", "sql/silver/returns.sql"]
    page.execute()
    assert page.compared == 4
    assert page.untouched() == before
    silver, bronze = page.shown("silver.returns"), page.shown("bronze.returns")
    assert silver["upstream"] == ["bronze/returns"]
    assert bronze["upstream"] == ["landing/erp/returns"]
    assert silver["checks"] == {
        "contract_satisfied": True,
        "keys_unique": True,
        "rows_conserved": True,
        "references_resolve": True,
        "looks_usual": True,
    }
    for table in (silver, bronze):
        assert table["declared_checks"] == sorted([*table["checks"], "due_month_present"])
        assert all(table["checks"].values())
        assert table["months"] == ["2025-06"]
    _is_documented(silver, _comments(database, "silver.returns"))
    _is_documented(bronze, _comments(database, "bronze.returns"))


def test_the_page_on_quarantine_and_repair(opened: Callable[[str], Page]) -> None:
    page = opened("docs/quarantine-and-repair.md")
    page.execute()
    assert page.compared == 4
    mended, exported = ((page.project / name) for name in ("mended.csv", "fix.csv"))
    lines = exported.read_text(encoding="utf-8-sig").splitlines()
    # What the page has mended is what it had exported, but for the values that were wrong.
    assert [line.split(",")[:4] for line in lines] == [
        line.split(",")[:4] for line in mended.read_text(encoding="utf-8").splitlines()
    ]


def test_the_page_on_late_data(opened: Callable[[str], Page]) -> None:
    page = opened("docs/late-data.md")
    page.execute()
    assert page.compared == 6


def test_the_page_on_schema_drift(opened: Callable[[str], Page]) -> None:
    page = opened("docs/schema-drift.md")
    page.execute()
    assert page.compared >= 2


def test_the_page_on_freshness(opened: Callable[[str], Page]) -> None:
    page = opened("docs/freshness.md")
    page.execute()
    assert page.compared == 1
    late = {t["table"]: t for t in json.loads(page.printed)}
    assert late["silver.orders"]["late_since"] == "2025-08-03T06:00:00+00:00"
    assert late["gold.fact_orders"]["waits_for"]


def test_the_page_on_versions(opened: Callable[[str], Page]) -> None:
    page = opened("docs/versions-and-rollback.md")
    before = page.untouched()
    assert _added(page) == ["corrected/orders_2025-06.csv"]
    page.execute()
    assert page.compared == 4
    assert page.untouched() == before


def test_the_page_on_operations(opened: Callable[[str], Page]) -> None:
    page = opened("docs/operations.md")
    shutil.copytree(PROJECT_ROOT / "data" / "sample", page.project / "data" / "sample")
    page.environment = {
        **page.environment,
        f"{ENV_PREFIX}BACKUP_URL": str(page.project / "vault"),
    }
    page.process("-m", "metalayer", "demo")
    page.execute()
    assert len(page.ran) > 10


def test_the_page_on_backup(opened: Callable[[str], Page], server_folder: Path) -> None:
    page = opened("docs/backup.md")
    shutil.copytree(PROJECT_ROOT / "data" / "sample", page.project / "data" / "sample")
    without = {f"{ENV_PREFIX}DATABASE_URL"}
    page.environment = {
        **{name: value for name, value in page.environment.items() if name not in without},
        f"{ENV_PREFIX}HOME": str(server_folder / "home"),
        f"{ENV_PREFIX}BACKUP_URL": str(server_folder / "vault"),
    }
    page.places = {"/new/home": str(server_folder / "new" / "home")}
    (server_folder / "new").mkdir(mode=0o711)
    page.process("-m", "metalayer", "demo")
    page.execute()
    assert len(page.ran) == 4
    landed = (server_folder / "new" / "home" / "landing").rglob("*.csv*")
    assert sum(1 for _ in landed) == 30


def _added(page: Page) -> list[str]:
    """Files of the project that the page adds; its exports are the user's."""
    return sorted(name for name in page.files if not name.startswith("exports/"))


def _is_documented(table: dict[str, Any], comments: dict[str | None, str | None]) -> None:
    assert table["description"].startswith(comments.pop(None))
    assert comments == table["columns"]
    assert all(comments.values())


def test_the_demo_prints_what_the_readme_shows(
    tmp_path: Path, database: str, dagster_url: str
) -> None:
    (shown,) = [text for title, text in _blocks(Path("README.md")) if title == "text"]
    page = Page([], PROJECT_ROOT, _environment(PROJECT_ROOT, tmp_path, database))
    printed = set(map(_timeless, _lines(page.process("-m", "metalayer", "demo"))))
    assert [line for line in _lines(shown) if _timeless(line) not in printed] == []


def _timeless(line: str) -> str:
    """A line of the table of layers without its seconds."""
    return line.rpartition(" ")[0] if line.startswith(LAYERS) else line


@pytest.mark.parametrize("page", _PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    text = _BLOCK.sub("", (PROJECT_ROOT / page).read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if not target.startswith(("http://", "https://")):
            assert (PROJECT_ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", _PAGES, ids=str)
def test_the_commands_that_pages_name_are_there(page: Path) -> None:
    from typer.main import get_command

    from metalayer.cli import app

    commands: Any = get_command(app)
    text = (PROJECT_ROOT / page).read_text(encoding="utf-8")
    for word, rest in re.findall(r"(?:^|`)\./run ([a-z]+)([^`\n]*)", text, re.MULTILINE):
        if word in _OF_RUN:
            continue
        assert word in commands.commands, word
        known = {o for p in commands.commands[word].params for o in p.opts} | {"--help"}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known, f"{word}{rest}"


def test_the_readme_names_every_setting() -> None:
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    table = set(re.findall(r"^\| `(METALAYER_[A-Z_]+)` \|", text, re.MULTILINE))
    assert table == {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}


def test_the_decisions_are_numbered_without_a_gap() -> None:
    names = sorted(p.name for p in (PROJECT_ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for name in names:
        text = (PROJECT_ROOT / "docs" / "adr" / name).read_text(encoding="utf-8")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
            "Context", "Decision", "Consequences",
        ]  # fmt: skip
