"""The command line without a warehouse: help, wrong usage, wrong settings, defects."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metalayer.cli import app, main

COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_commands_are_those_of_the_readme() -> None:
    assert COMMANDS == [
        "demo", "up", "alerts", "anomalies", "quality", "metrics", "backup", "backups", "restore",
        "drill", "logs", "land", "build", "migrate", "roles", "scan", "subject",
        "erase", "hold", "retain", "keys", "env",
        "status", "ledger", "rejects", "query", "trace", "versions", "diff", "rollback", "docs",
        "contracts", "audit", "generate", "doctor",
    ]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert "Example" in out
    assert re.search(rf"^ *metalayer {command}\b", out, re.MULTILINE)


def test_help_fits_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, "--help")
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert re.fullmatch(r"metalayer \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["status", "extra"], "unexpected extra argument"),
        (["status", "--nosuch"], "No such option"),
        (["rejects", "--limit", "0"], "--limit"),
        (["land"], "Missing argument"),
        (["land", "nosuch.csv"], "nosuch.csv"),
        (["query"], "Missing argument"),
        (["query", " "], "The query is empty"),
        (["query", "select 1", "--format", "xml"], "--format"),
        (["generate", "--rows", "10"], "--months"),
        (["generate", "--rows", "0", "--months", "1", "--out", "x"], "--rows"),
        (["generate", "--rows", "5", "--months", "1", "--out", "x", "--dirt", "2"], "--dirt"),
        (["generate", "--rows", "5", "--months", "1", "--out", "x", "--start", "1.25"], "--start"),
        (["versions"], "Missing argument"),
        (["logs", "--month", "June"], "'June' is not a month"),
        (["logs", "--since", "June"], "'June' is no time"),
        (["logs", "--level", "loud"], "--level"),
        (["versions", "gold.fact_sales", "June"], "'June' is not a month"),
        (["diff", "gold.fact_sales", "2025-01", "1"], "Missing argument"),
        (["diff", "gold.fact_sales", "2025-01", "0", "1"], "V1"),
        (["rollback", "gold.fact_sales", "2025-01"], "--to"),
        (["rollback", "gold.nosuch", "2025-01", "--to", "1"], "There is no table 'gold.nosuch'"),
        (["build", "gold.nosuch"], "There is no table or layer 'gold.nosuch'"),
        (["build", "--months", "2025"], "'2025' names no months"),
        (["build", "--months", "2019-12"], "before the first month, 2020-01"),
        (["build", "--months", "2020-01..2999-01"], "in the future"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_to_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    # What takes longer than two seconds is said before.
    error, *rest = err[err.index("error: ") :].splitlines()
    assert message in error
    assert any(line.startswith("next: ") for line in rest)
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [], "wrong usage leaves nothing behind"


def test_a_bare_name_is_answered_with_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "build", "fact_sales")
    assert "Did you mean gold.fact_sales?" in err


@pytest.mark.parametrize("command", ["status", "ledger", "rejects", "build", "demo"])
def test_a_wrong_setting_ends_with_1_and_names_the_variable(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METALAYER_WORKERS", "many")
    code, _, err = run(capsys, command)
    assert code == 1
    assert err.startswith("error: METALAYER_WORKERS='many' cannot be used")
    assert "next: " in err


def test_next_steps_are_written_as_the_user_calls_the_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metalayer", "query", "select 1"],
        env={"METALAYER_PROG": "./run", "METALAYER_HOME": str(tmp_path), "PATH": "/usr/bin"}
        | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "`./run demo`" in done.stderr


@pytest.mark.parametrize("command", ["status", "ledger", "rejects"])
def test_before_anything_is_built_reading_says_how_to_begin(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, command)
    assert (code, out) == (0, "")
    assert "next: metalayer demo" in err
    assert run(capsys, command, "--json") == (0, "[]\n", "")
    assert list(tmp_path.iterdir()) == [], "no server is started to say so"


def test_a_defect_is_one_line_and_its_traceback_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # A folder in place of that file is nothing that MetaLayer foresees.
    (tmp_path / ".metalayer" / "postgres" / "PG_VERSION").mkdir(parents=True)
    code, _, err = run(capsys, "status")
    assert code == 1
    assert err.startswith("error: IsADirectoryError")
    (written,) = (tmp_path / ".metalayer" / "errors").iterdir()
    assert str(written) in err
    assert "Traceback" in written.read_text()
    assert "Traceback" not in err


def test_generate_writes_the_exports(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(
        capsys, "generate", "--rows", "50", "--months", "2", "--start", "2025-01", "--out", "x"
    )
    assert code == 0
    assert "x/erp/orders.csv  50 rows" in out
    assert (tmp_path / "x" / "crm" / "crm_customers_2025-02.csv").is_file()
    assert "next: metalayer land x/*/*.csv" in err
    assert run(
        capsys, "generate", "--rows", "50", "--months", "2", "--split", "month", "--out", "y"
    )[0] == 0  # fmt: skip
    assert len(list((tmp_path / "y").rglob("*.csv*"))) > 8


def test_land_copies_into_the_landing_zone_or_refuses_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good, bad = tmp_path / "orders_2025-01.csv", tmp_path / "prices.csv"
    good.write_text("order_id\n")
    bad.write_text("price\n")
    landing = tmp_path / ".metalayer" / "landing"
    code, _, err = run(capsys, "land", str(good), str(bad))
    assert code == 2
    assert "prices.csv matches no source" in err
    assert "erp/orders*.csv" in err
    assert not landing.exists()
    code, out, err = run(capsys, "land", str(good))
    assert code == 0
    assert str(landing / "erp" / "orders_2025-01.csv") in out
    assert (landing / "erp" / "orders_2025-01.csv").read_text() == "order_id\n"
    assert "next: metalayer build" in err
    assert run(capsys, "land", str(bad), "--source", "erp/orders")[0] == 0
    assert (landing / "erp" / "orders_prices.csv").is_file()


def test_reading_commands_import_neither_dagster_nor_frames(tmp_path: Path) -> None:
    program = (
        "import sys; from metalayer.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'dagster', 'pandera', 'polars', 'pandas', 'duckdb', 'sqlalchemy'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or code)"
    )
    for arguments in (["--help"], ["status", "--json"], ["rejects"], ["build", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={"METALAYER_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["erase", "--customer", "7", "--out", "x.json"], "erases a customer"),
        (["retain"], "takes out months"),
        (["rollback", "gold.fact_sales", "2025-01", "--to", "1"], "makes version 1"),
        (["land", "--withdraw", "erp/orders.csv"], "takes landed files out"),
        (["keys", "rotate"], "seals everything"),
        (["roles", "apply"], "takes back every grant"),
    ],
)
def test_production_is_destroyed_only_by_those_who_say_so(
    arguments: list[str],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("METALAYER_ENV", "prod")
    # A server that does not answer: whoever gets past the question fails for it.
    monkeypatch.setenv("METALAYER_DATABASE_URL", "postgresql://me@127.0.0.1:1/sales")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert what in err
    assert "METALAYER_ENV is prod (postgresql+psycopg2://me@127.0.0.1:1/sales)" in err
    assert "--yes-prod" in err
    assert list(tmp_path.iterdir()) == []
    code, _, err = run(capsys, *arguments, "--yes-prod")
    assert code == 1
    assert "cannot be reached" in err
    monkeypatch.setenv("METALAYER_ENV", "staging")
    assert run(capsys, *arguments)[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["erase", "--customer", "7", "--dry-run"],
        ["retain", "--plan"],
        ["roles", "apply", "--plan"],
        ["migrate", "--plan"],
        ["keys", "list"],
    ],
)
def test_looking_at_production_needs_no_word(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METALAYER_ENV", "prod")
    monkeypatch.setenv("METALAYER_DATABASE_URL", "postgresql://me@127.0.0.1:1/sales")
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "cannot be reached" in err


def test_environments_are_listed_with_what_sets_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("METALAYER_WORKERS=2\n")
    (tmp_path / ".env.prod").write_text("METALAYER_DATABASE_URL=postgresql://a:s3c@db/sales\n")
    (tmp_path / ".env.staging").write_text("METALAYER_WORKERS=many\n")
    monkeypatch.setenv("METALAYER_ENV", "prod")
    code, out, err = run(capsys, "env", "--json")
    assert code == 0
    dev, staging, prod = json.loads(out)
    assert (dev["environment"], dev["is_chosen"]) == ("dev", False)
    assert dev["database"] == f"embedded in {tmp_path / '.metalayer' / 'postgres'}"
    assert prod["is_chosen"]
    assert prod["database"].endswith("//a:***@db/sales")
    assert prod["set_by"] == {
        ".env": ["METALAYER_WORKERS"],
        ".env.prod": ["METALAYER_DATABASE_URL"],
    }
    assert "METALAYER_WORKERS='many' cannot be used" in staging["problem"]
    code, out, err = run(capsys, "env")
    assert code == 0
    assert "s3c" not in out + err
    assert "prod *" in out
    assert "prod: .env.prod sets METALAYER_DATABASE_URL." in err
