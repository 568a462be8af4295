"""A platform for viewers, on a server with a password: nothing can be started, nothing is told."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from psycopg2 import sql

from metalayer_tests.e2e.up import Up, wait

CARRIED = "S3cretOfTheWarehouse"
ORDER = "1,7,P00001,2025-01-05,2,5.00,10.00,PAID"


@pytest.fixture
def closed(module_folder: Path, database: str) -> Iterator[tuple[Up, str]]:
    """`up --read-only` on a server of the user's own, and the URL of the warehouse there."""
    # The server trusts whoever reaches its socket: the password is only carried about.
    url = database.replace("+psycopg2", "").replace("postgres@", f"postgres:{CARRIED}@", 1)
    home = module_folder / "home"
    home.mkdir()
    up = Up(home, "--read-only", METALAYER_DATABASE_URL=url)
    try:
        yield up, url
    finally:
        up.end()


def asked(up: Up, query: str) -> dict[str, object]:
    request = urllib.request.Request(  # noqa: S310 - on loopback
        f"{up.url}/graphql",
        json.dumps({"query": query}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        found: dict[str, object] = json.load(answer)["data"]
        return found


def test_viewers_start_nothing_and_no_secret_is_told(closed: tuple[Up, str]) -> None:
    up, url = closed
    up.land_orders("orders.csv", ORDER)
    # Sensors work all the same.
    wait(lambda: "finished" in up.said, 120, up)
    may = asked(up, "{permissions {permission value}}")["permissions"]
    assert isinstance(may, list)
    assert may
    assert not [m for m in may if m["value"] and m["permission"].startswith(("launch", "delete"))]
    stopped = asked(up, 'mutation {terminateRun(runId: "x") {__typename}}')
    assert stopped == {"terminateRun": {"__typename": "UnauthorizedError"}}

    for child in up.family():
        with_it = [word for word in child.cmdline() if CARRIED in word]
        assert not with_it, child.name()
    assert CARRIED not in up.said
    files = [path for path in up.home.rglob("*") if path.is_file()]
    assert {"dagster.yaml", "webserver.log", "daemon.log", "code-server.log"} <= {
        path.name for path in files
    }
    assert [path for path in files if CARRIED.encode() in path.read_bytes()] == []
    stored = everything(url.replace("?", "_dagster?", 1))
    assert "silver" in stored, "runs and events are in it"
    assert CARRIED not in stored
    warehouse = everything(url)
    assert "orders.csv" in warehouse
    assert CARRIED not in warehouse


def everything(url: str) -> str:
    """All rows of all tables of a database, as text."""
    found = []
    connection = psycopg2.connect(url)
    with connection.cursor() as cursor:
        cursor.execute(
            "select table_schema, table_name from information_schema.tables "
            "where table_type = 'BASE TABLE' "
            "and table_schema not in ('pg_catalog', 'information_schema')"
        )
        for name in cursor.fetchall():
            cursor.execute(sql.SQL("select t::text from {} as t").format(sql.Identifier(*name)))
            found += [text for (text,) in cursor.fetchall()]
    connection.close()
    return "\n".join(found)


@pytest.mark.parametrize("words", [["status"], ["build"], ["doctor"], ["audit", "verify"]])
def test_an_error_tells_no_password(
    tmp_path: Path, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    from metalayer.cli import main

    place = f"ana:{CARRIED}@127.0.0.1:9/sales?sslpassword={CARRIED}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALAYER_HOME", str(tmp_path / "home"))
        patch.setenv("METALAYER_DATABASE_URL", f"postgresql://{place}")
        assert main(words) == 1
    said = capfd.readouterr()
    assert "127.0.0.1" in said.out + said.err
    assert CARRIED not in said.out + said.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CARRIED.encode() not in path.read_bytes()
    assert not [p for p in psutil.Process().children() if CARRIED in " ".join(p.cmdline())]
