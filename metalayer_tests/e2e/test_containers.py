"""The services of our image, run outside containers as compose would run them.

Commands, environment, order and health checks are the file's; hosts become loopback, ports free
ones, volumes folders. PostgreSQL is the wheel's, over TCP with a password, started with the file's
options.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from metalayer.governance.sealing import make_key
from metalayer.operations import METRICS_PORT
from metalayer.pages import QUALITY_PORT
from metalayer.settings import PROJECT_ROOT
from metalayer.warehouse.account import account_for
from metalayer.warehouse.postgres import clean_environment, programs
from metalayer_tests.composed import COMPOSE, OURS, SERVICES, filled, image_environment

_BIN = Path(sys.executable).parent
_PLACES = ("state", "landing", "backups", "wal", "workspace.yaml")
#: Where a service listens that its command does not say.
_USUAL_PORTS = {"metrics": METRICS_PORT, "quality": QUALITY_PORT, "postgres": 5432}
ORDERS = (
    "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
    "1,7,P00001,2025-01-02,1,2.00,2.00,PAID\n"
)


@dataclass
class Composed:
    """Services that run, each a process of this machine."""

    folder: Path
    values: dict[str, str]
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def outside(self, name: str, text: str) -> str:
        """A text of the file as it is to be said outside a container."""
        text = filled(text, self.values).replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        for other, port in self.ports.items():
            text = text.replace(f"{other}:{_inner(other)}", f"127.0.0.1:{port}")
        if name in self.ports:
            text = re.sub(
                rf"^{_inner(name)}$|(?<=127\.0\.0\.1:){_inner(name)}\b",
                str(self.ports[name]),
                text,
            )
        return re.sub(
            rf"(?<![\w.])/({'|'.join(map(re.escape, _PLACES))})\b", f"{self.folder}/\\1", text
        )

    def environment(self, name: str) -> dict[str, str]:
        """What the container would have, and nothing of this process."""
        given = {**image_environment(), **SERVICES[name].get("environment", {})}
        return {
            "PATH": f"{_BIN}:{programs()}:{os.environ['PATH']}",
            "PGPORT": str(self.ports["postgres"]),
            **{key: self.outside(name, str(value)) for key, value in given.items()},
        }

    def start(self, name: str, command: list[str], **options: Any) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, **options
            )

    def check(self, name: str) -> subprocess.CompletedProcess[str]:
        """The file's health check, once."""
        test = SERVICES[name]["healthcheck"]["test"]
        return subprocess.run(
            [self.outside(name, word) for word in test[1:]],
            env=self.environment(name),
            cwd=self.folder / "state",
            capture_output=True,
            text=True,
        )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def ask(self, query: str) -> Any:
        with contextlib.closing(self.connect("metalayer")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()

    def connect(self, database: str, password: str | None = None) -> Any:
        return psycopg2.connect(
            host="127.0.0.1",
            port=self.ports["postgres"],
            user="metalayer",
            dbname=database,
            password=password or self.values["POSTGRES_PASSWORD"],
        )


def _inner(name: str) -> int:
    command = SERVICES[name].get("command", [])
    if "--port" in command:
        return int(command[command.index("--port") + 1])
    return _USUAL_PORTS[name]


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def until(what: str, holds: Callable[[], bool], seconds: float = 180) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"not within {seconds:.0f} s: {what}"
        time.sleep(1)


def start_postgres(composed: Composed) -> None:
    """The service postgres, as its image would make and start it."""
    folder, service = composed.folder, SERVICES["postgres"]
    data = folder / "postgres"
    data.mkdir(mode=0o700)
    account = account_for(folder / "none")
    password = folder / "password"
    password.write_text(composed.values["POSTGRES_PASSWORD"])
    script = folder / "archive-segment"
    script.write_text(filled(COMPOSE["configs"]["archive"]["content"], {}))
    if account is not None:
        account.open_the_way([folder, *folder.parents])
        for path in (data, folder / "wal", password, script):
            account.own(path)
    options: dict[str, Any] = {"env": clean_environment(), "cwd": data}
    options |= account.popen() if account is not None else {}
    user = service["environment"]["POSTGRES_USER"]
    subprocess.run(
        [
            *(programs() / "initdb", "-D", data, "-U", user, "--encoding=UTF8", "--locale=C"),
            *("--auth=scram-sha-256", f"--pwfile={password}"),
        ],
        check=True,
        capture_output=True,
        **options,
    )
    program, *words = service["command"]
    words = [
        composed.outside("postgres", word).replace("/usr/local/bin/archive-segment", str(script))
        for word in words
    ]
    composed.start(
        "postgres",
        [
            *(str(programs() / program), *words, "-D", str(data)),
            *("-p", str(composed.ports["postgres"]), "-c", "listen_addresses=127.0.0.1"),
            *("-c", f"unix_socket_directories={data}", "-c", "fsync=off"),
        ],
        **options,
    )
    until("PostgreSQL answers", lambda: _answers(composed))
    with contextlib.closing(composed.connect("postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"create database {service['environment']['POSTGRES_DB']}")
            cursor.execute(COMPOSE["configs"]["dagster_database"]["content"])


def _answers(composed: Composed) -> bool:
    try:
        composed.connect("postgres").close()
    except psycopg2.OperationalError:
        return False
    return True


@pytest.fixture(scope="module")
def composed(module_folder: Path) -> Iterator[Composed]:
    """All services of our image, started in the file's order as their health checks turn green."""
    listening = [*_USUAL_PORTS, *(n for n in OURS if "--port" in OURS[n]["command"])]
    ports = dict(zip(listening, free_ports(len(listening)), strict=True))
    values = {
        "POSTGRES_PASSWORD": "Secret4711",
        "METALAYER_BACKUP_KEY": make_key().text,
        # Nobody listens: what cannot be told is tried again, and ends nothing.
        "METALAYER_ALERT_URLS": "json://127.0.0.1:9/",
    }
    made = Composed(module_folder, values, ports)
    for name in ("state/dagster", "landing", "backups", "wal"):
        (module_folder / name).mkdir(parents=True)
    shutil.copyfile(
        PROJECT_ROOT / "dagster.yaml", module_folder / "state" / "dagster" / "dagster.yaml"
    )
    workspace = COMPOSE["configs"]["workspace"]["content"]
    workspace = workspace.replace("host: code", "host: 127.0.0.1").replace(
        f"port: {_inner('code')}", f"port: {ports['code']}"
    )
    (module_folder / "workspace.yaml").write_text(workspace)
    try:
        start_postgres(made)
        order = TopologicalSorter(
            {n: [d for d in s.get("depends_on", {}) if d in OURS] for n, s in OURS.items()}
        )
        for name in order.static_order():
            command = [made.outside(name, word) for word in OURS[name]["command"]]
            if name in _USUAL_PORTS:
                command += ["--port", str(ports[name])]
            made.start(name, command, env=made.environment(name), cwd=module_folder / "state")
            if name == "code":
                until(f"{name} is healthy", lambda: made.check("code").returncode == 0)
        yield made
    finally:
        for name, process in reversed(made.processes.items()):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    # What the server does not do for its clients: a fast shutdown.
                    how = signal.SIGINT if name == "postgres" else signal.SIGTERM
                    os.killpg(process.pid, how) if name != "postgres" else process.send_signal(how)
        for process in made.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def test_the_password_is_asked_for(composed: Composed) -> None:
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        composed.connect("metalayer", "metalayer")


@pytest.mark.parametrize("name", ["postgres", *OURS])
def test_every_service_turns_healthy_and_goes_on(composed: Composed, name: str) -> None:
    check = composed.check(name)
    ends = time.monotonic() + 240
    while check.returncode != 0:
        assert time.monotonic() < ends, f"{check.stdout}{check.stderr}\n{composed.said(name)}"
        time.sleep(2)
        check = composed.check(name)
    assert composed.processes[name].poll() is None, composed.said(name)
    assert "Traceback" not in composed.said(name)


def test_what_lands_becomes_tables(composed: Composed) -> None:
    folder = composed.folder / "landing" / "erp"
    folder.mkdir()
    (folder / "orders_2025-01.csv.part").write_text(ORDERS)
    (folder / "orders_2025-01.csv.part").rename(folder / "orders_2025-01.csv")

    def is_there() -> bool:
        query = "select to_regclass('gold.agg_monthly_sales') is not null"
        return composed.ask(query) == [(True,)] and composed.ask(
            "select orders, revenue::int from gold.agg_monthly_sales"
        ) == [(1, 2)]

    until("an order is a row of gold.agg_monthly_sales", is_there, 300)


def test_the_web_interfaces_load_the_code_and_one_only_shows(composed: Composed) -> None:
    query = (
        '{"query": "{ repositoriesOrError { ... on RepositoryConnection { nodes { name '
        'location { name } } } } permissions { permission value } }"}'
    )
    for name, may in (("webserver", True), ("viewer", False)):
        request = urllib.request.Request(
            f"http://127.0.0.1:{composed.ports[name]}/graphql",
            query.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            found = json.load(answer)["data"]
        (repository,) = found["repositoriesOrError"]["nodes"]
        assert repository["location"]["name"] == "metalayer"
        allowed = {p["permission"]: p["value"] for p in found["permissions"]}
        assert allowed["launch_pipeline_execution"] is may


@contextlib.contextmanager
def caddy(composed: Composed) -> Iterator[dict[int, int]]:
    """Debian's Caddy with the file's configuration: port in the container -> port here."""
    program = shutil.which("caddy")
    if program is None:
        pytest.fail("There is no caddy. Install it: apt-get install -y caddy")
    *ports, admin = free_ports(5)
    listening = dict(zip((8079, 8080, 8081, 8082), ports, strict=True))
    text = composed.outside("proxy", COMPOSE["configs"]["caddyfile"]["content"])
    for inner, port in listening.items():
        text = text.replace(f":{inner} {{", f":{port} {{")
    # Debian's is 2.6; from 2.8 on the directive is written so.
    text = text.replace("basic_auth {", "basicauth {")
    path = composed.folder / "Caddyfile"
    path.write_text(text)
    environment = composed.environment("proxy")
    environment |= {"CADDY_ADMIN": f"127.0.0.1:{admin}", "HOME": str(composed.folder)}
    with (composed.folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "run", "--config", path, "--adapter", "caddyfile"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield listening
    finally:
        process.terminate()
        process.wait(30)


def hashed(password: str) -> str:
    words = ["caddy", "hash-password", "--plaintext", password]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def answer_of(port: int, login: str = "", page: str = "/server_info") -> int:
    """The status of a page, asked as somebody; of the one that tells what runs there."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{page}")
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_proxy_lets_viewers_and_operators_in_each_to_theirs(composed: Composed) -> None:
    composed.values["VIEWER_HASH"], composed.values["OPERATOR_HASH"] = map(hashed, ("see", "do"))
    with caddy(composed) as ports:
        test = [
            word.replace("8079", str(ports[8079]))
            for word in SERVICES["proxy"]["healthcheck"]["test"]
        ]
        until(
            "the proxy is healthy",
            lambda: subprocess.run(test[1:], check=False, capture_output=True).returncode == 0,
            30,
        )
        for port in (8080, 8081):
            assert answer_of(ports[port]) == 401
            assert answer_of(ports[port], "viewer:do") == 401
        assert answer_of(ports[8080], "viewer:see") == 200
        assert answer_of(ports[8082], page="/") == 401
        assert answer_of(ports[8082], "viewer:see", "/") == 200
        assert answer_of(ports[8081], "viewer:see") == 401
        assert answer_of(ports[8081], "operator:do") == 200


def test_metrics_tell_of_the_warehouse(composed: Composed) -> None:
    url = f"http://127.0.0.1:{composed.ports['metrics']}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    assert re.search(r'(?m)^metalayer_table_rows\{.*table="silver\.orders".*\} 1\.0$', text), text


def test_a_backup_is_taken_and_nobody_reads_it_without_the_key(composed: Composed) -> None:
    def listed() -> list[dict[str, Any]]:
        check = composed.check("backup")
        assert check.returncode == 0, check.stderr
        found: list[dict[str, Any]] = json.loads(check.stdout)["backups"]
        return found

    # The first one may have come before there was anything to dump: then it is tried again.
    done = subprocess.run(
        [_BIN / "metalayer", "backup"],
        env=composed.environment("backup"),
        cwd=composed.folder / "state",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert listed()[0]["kind"] == "dump"
    kept = b"".join(
        path.read_bytes() for path in (composed.folder / "backups").rglob("*") if path.is_file()
    )
    assert len(kept) > 10_000
    assert b"order_id" not in kept


def test_the_log_is_archived_whole_and_nothing_is_written_over(composed: Composed) -> None:
    composed.ask("select pg_switch_wal()")
    wal = composed.folder / "wal"
    until("a segment is archived", lambda: any(len(p.name) == 24 for p in wal.iterdir()))
    assert composed.ask("select failed_count from pg_stat_archiver") == [(0,)]
    segment = min(path for path in wal.iterdir() if len(path.name) == 24)
    assert segment.stat().st_size == 16 * 1024**2
    script, other = composed.folder / "archive-segment", composed.folder / "other"
    shutil.copyfile(segment, other)

    def archive() -> int:
        return subprocess.run(["sh", script, other, segment], check=False).returncode

    assert archive() == 0, "the same again is well"
    before = segment.read_bytes()
    other.write_bytes(b"another")
    assert archive() != 0
    assert segment.read_bytes() == before
    # A copy that was broken off is made anew.
    fresh = wal / "0000000100000000000000FF"
    fresh.with_suffix(".part").write_bytes(b"half")
    assert subprocess.run(["sh", script, other, fresh], check=False).returncode == 0
    assert fresh.read_bytes() == b"another"


@pytest.mark.parametrize("name", ["postgres", *OURS])
def test_no_service_comes_near_its_limit_of_memory(composed: Composed, name: str) -> None:
    limit = SERVICES[name]["deploy"]["resources"]["limits"]["memory"]
    most = int(limit[:-1]) * 1024 ** {"m": 2, "g": 3}[limit[-1]]
    whole = psutil.Process(composed.processes[name].pid)
    used = 0
    for process in (whole, *whole.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            used += process.memory_full_info().pss
    assert 0 < used < most / 2, f"{used / 1024**2:.0f} MB of {limit}"
