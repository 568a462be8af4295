"""The files around the code hold together: compose, workspace, instance, locks, scripts."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalayer.operations import METRICS_PORT
from metalayer.settings import ENV_PREFIX, PROJECT_ROOT, Settings

SERVICES = {
    *("postgres", "code", "webserver", "daemon", "viewer", "proxy"),
    *("metrics", "alerts", "backup", "quality", "prometheus", "grafana"),
}


def text(name: str) -> str:
    return (PROJECT_ROOT / name).read_text(encoding="utf-8")


def parsed(name: str) -> Any:
    return yaml.safe_load(text(name))


def locked(name: str) -> dict[str, list[str]]:
    """Package -> the hashes that a lock file allows for it."""
    packages: dict[str, list[str]] = {}
    current = ""
    for line in text(name).splitlines():
        if match := re.match(r"([a-z0-9-]+)==\S+", line):
            current = match[1]
            packages.setdefault(current, [])
        elif match := re.match(r"    --hash=(sha256:[0-9a-f]{64})", line):
            packages[current].append(match[1])
    return packages


def test_compose_has_its_services_and_only_names_what_it_defines() -> None:
    compose = parsed("docker-compose.yml")
    assert set(compose["services"]) == SERVICES
    for name, service in compose["services"].items():
        assert set(service.get("depends_on", {})) <= SERVICES - {name}
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("./") or source in compose["volumes"]
    assert compose["services"]["postgres"]["image"] == "postgres:18"
    assert (PROJECT_ROOT / compose["services"]["code"]["build"] / "Dockerfile").is_file()


def test_compose_opens_no_port_to_the_world_and_has_no_password() -> None:
    compose = parsed("docker-compose.yml")
    ports = [port for s in compose["services"].values() for port in s.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            is_url = name.endswith("_URL") and name != "METALAYER_BACKUP_URL"
            if "PASSWORD" in name or is_url:
                assert re.search(r"\$\{(POSTGRES|GRAFANA)_PASSWORD:\?", value), name


def test_prometheus_in_compose_is_the_one_of_the_page_but_for_where_metrics_are() -> None:
    compose = parsed("docker-compose.yml")
    inner = yaml.safe_load(compose["configs"]["prometheus"]["content"])
    outer = parsed("monitoring/prometheus.yml")
    (target,) = inner["scrape_configs"][0]["static_configs"][0].pop("targets")
    (local,) = outer["scrape_configs"][0]["static_configs"][0].pop("targets")
    assert inner == outer
    assert target.split(":") == ["metrics", str(METRICS_PORT)]
    assert local.split(":") == ["localhost", str(METRICS_PORT)]
    assert "--port" not in compose["services"]["metrics"]["command"]


def test_what_compose_mounts_is_there_and_where_grafana_looks() -> None:
    compose = parsed("docker-compose.yml")
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./monitoring"):
                assert (PROJECT_ROOT / source).exists(), source
    grafana = compose["services"]["grafana"]
    provisioning = "monitoring/grafana/provisioning"
    (provider,) = parsed(f"{provisioning}/dashboards/metalayer.yml")["providers"]
    assert f"./monitoring/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    (source,) = parsed(f"{provisioning}/datasources/metalayer.yml")["datasources"]
    address = grafana["environment"][source["url"].removeprefix("$")]
    assert address == "http://prometheus:9090"


def test_compose_gives_the_settings_that_metalayer_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = parsed("docker-compose.yml")["services"]["daemon"]["environment"]
    known = {ENV_PREFIX + field.upper() for field in Settings.model_fields}
    assert {name for name in environment if name.startswith(ENV_PREFIX)} <= known
    for name, value in environment.items():
        value = re.sub(r"\$\{\w+:\?[^}]*\}", "pw", value)
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
    url = Settings.load().database_url
    assert url is not None
    # Dagster's storage is where `warehouse_server` would put it.
    assert os.environ["DAGSTER_PG_URL"] == url.get_secret_value() + "_dagster"


def test_the_inner_workspace_reaches_the_code_server() -> None:
    compose = parsed("docker-compose.yml")
    (location,) = yaml.safe_load(compose["configs"]["workspace"]["content"])["load_from"]
    command = compose["services"]["code"]["command"]
    assert location["grpc_server"]["host"] in compose["services"]
    assert str(location["grpc_server"]["port"]) == command[command.index("--port") + 1]


def test_the_workspace_names_a_module_that_exists() -> None:
    (location,) = parsed("workspace.yaml")["load_from"]
    module = location["python_module"]["module_name"]
    assert find_spec(module) is not None
    assert location["python_module"]["attribute"] == "defs"
    assert module in parsed("docker-compose.yml")["services"]["code"]["command"]


def test_the_instance_file_is_valid_to_dagster(
    monkeypatch: pytest.MonkeyPatch, dagster_url: str, tmp_path: Path
) -> None:
    from dagster import DagsterInstance

    (tmp_path / "dagster.yaml").write_text(text("dagster.yaml"))
    monkeypatch.setenv("DAGSTER_PG_URL", dagster_url)
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_runs_count() == 0
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled


def test_the_example_names_every_setting_and_changes_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    example = text(".env.example")
    for field in Settings.model_fields:
        assert f"#{ENV_PREFIX}{field.upper()}=" in example
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(example)
    assert Settings.load() == Settings(_env_file=None)


def test_every_locked_package_has_hashes_and_no_place_of_origin() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        assert all(locked(name).values())
        assert not re.search(r"https?:|file:|index-url|find-links|@ ", text(name))


def test_the_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads(text("pyproject.toml"))
    run, dev = locked("requirements.lock"), locked("requirements-dev.lock")

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=!~ ]", line)[0] for line in requirements}

    assert names(project["project"]["dependencies"]) <= run.keys()
    assert names(project["dependency-groups"]["build"]) <= run.keys()
    assert names(project["build-system"]["requires"]) <= run.keys()
    assert names(project["project"]["optional-dependencies"]["dev"]) <= dev.keys()
    assert run.items() <= dev.items()


@pytest.mark.parametrize("name", ["run", ".ci/run"])
def test_scripts_can_be_called(name: str) -> None:
    assert os.access(PROJECT_ROOT / name, os.X_OK)


def test_run_without_a_word_says_what_it_can_do() -> None:
    said = subprocess.run([sys.executable, "run"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert said.returncode == 2
    assert "./run test" in said.stderr
    assert said.stdout == ""


def test_the_justfile_describes_every_target() -> None:
    lines = text("Justfile").splitlines()
    targets = [i for i, line in enumerate(lines) if re.match(r"[a-z]+.*:$", line)]
    assert 6 <= len(targets) <= 10
    assert all(lines[i - 1].startswith("# ") for i in targets)


@contextlib.contextmanager
def advisories(known: dict[str, str]) -> Iterator[str]:
    """Where OSV would be: package -> the advisory that it has."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
            found = {}
            if asked["name"] in known:
                ranges = [{"type": "ECOSYSTEM", "events": [{"fixed": "999.0"}]}]
                found = {
                    "vulns": [
                        {
                            "id": known[asked["name"]],
                            "summary": "A flaw",
                            "affected": [{"package": asked, "ranges": ranges}],
                        }
                    ]
                }
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("known", "code"), [({}, 0), ({"polars": "PYSEC-0000-1"}, 1)])
def test_locked_packages_with_advisories_fail_the_check(
    tmp_path: Path, known: dict[str, str], code: int
) -> None:
    with advisories(known) as url:
        said = ask_for_advisories(tmp_path, url)
    assert said.returncode == code, said.stdout + said.stderr
    assert ("PYSEC-0000-1, mended in 999.0" in said.stderr) == bool(known)
    # All that is locked for this platform was asked about.
    (asked,) = re.findall(r"^(\d+) dependencies", said.stderr, re.MULTILINE)
    assert int(asked) > 0.9 * len(locked("requirements-dev.lock"))


def test_nobody_to_ask_for_advisories_is_said_and_holds_up_nothing(tmp_path: Path) -> None:
    said = ask_for_advisories(tmp_path, "http://127.0.0.1:1/v1/query")
    assert said.returncode == 0
    assert "Not asked for advisories: " in said.stderr


def ask_for_advisories(cache: Path, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run", "advisories"],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PIP_AUDIT_OSV_URL": url, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
