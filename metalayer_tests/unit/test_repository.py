"""The files around the code hold together: compose, workspace, instance, locks, scripts."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalayer.settings import ENV_PREFIX, PROJECT_ROOT, Settings

SERVICES = {"postgres", "code", "webserver", "daemon", "viewer", "proxy"}


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
        for name, value in service["environment"].items():
            if "PASSWORD" in name or name.endswith("_URL"):
                assert "${POSTGRES_PASSWORD:?" in value, name


def test_viewers_reach_a_read_only_webserver_and_only_by_the_proxy() -> None:
    compose = parsed("docker-compose.yml")
    viewer, proxy = compose["services"]["viewer"], compose["services"]["proxy"]
    assert "--read-only" in viewer["command"]
    assert "ports" not in viewer
    assert proxy["environment"]["VIEWER_HASH"].startswith("${VIEWER_HASH:?")
    # Compose itself fills in what has one dollar; the proxy is to do it.
    caddyfile = compose["configs"]["caddyfile"]["content"].replace("$$", "$")
    assert "basic_auth" in caddyfile
    assert "{$VIEWER_NAME} {$VIEWER_HASH}" in caddyfile
    assert "reverse_proxy viewer:3000" in caddyfile


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
