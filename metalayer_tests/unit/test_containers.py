"""What compose and the image say, held against the code: there is no engine to try them with."""

import ast
import itertools
import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from metalayer.cli import main
from metalayer.operations import METRICS_PORT
from metalayer.pages import QUALITY_PORT
from metalayer.settings import ENV_PREFIX, PROJECT_ROOT, Settings
from metalayer_tests.composed import (
    COMPOSE,
    OURS,
    SERVICES,
    filled,
    image_environment,
    instructions,
    variables,
)

TEXT = (PROJECT_ROOT / "docker-compose.yml").read_text()
DOCS = (PROJECT_ROOT / "docs" / "containers.md").read_text()
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "compose-spec.schema.json").read_text())
#: What the images of others know, by their documentation.
KNOWN = {
    "postgres": {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"},
    # Named in the configuration that the service gets.
    "proxy": {"VIEWER_NAME", "VIEWER_HASH", "OPERATOR_NAME", "OPERATOR_HASH"},
    "grafana": {
        *("GF_SECURITY_ADMIN_PASSWORD", "GF_ANALYTICS_REPORTING_ENABLED"),
        *("GF_ANALYTICS_CHECK_FOR_UPDATES", "PROMETHEUS_ADDRESS"),
    },
    "prometheus": set(),
}
#: Reported as whole units by the Compose Specification.
MEMORY = re.compile(r"\d+[mg]")


def words(service: dict[str, Any]) -> list[str]:
    found: list[str] = service.get("command", [])
    return found


def test_the_file_keeps_to_the_compose_specification() -> None:
    validator = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)
    assert [e.message for e in validator.iter_errors(COMPOSE)] == []
    broken = {**COMPOSE, "services": {"code": {"imagee": "x"}}}
    assert list(validator.iter_errors(broken)), "the schema refuses what is none"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_looked_after_and_bounded(name: str) -> None:
    service = SERVICES[name]
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries"} <= check.keys()
    limits = service["deploy"]["resources"]["limits"]
    assert MEMORY.fullmatch(limits["memory"])
    assert float(limits["cpus"]) > 0
    assert service["logging"]["driver"] == "json-file"
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service["restart"] in ("unless-stopped", "on-failure")
    for other, how in service.get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]


def test_no_password_has_a_default() -> None:
    secret = {name for name in variables(TEXT) if re.search("PASSWORD|HASH|_KEY$", name)}
    assert secret == {
        *("POSTGRES_PASSWORD", "GRAFANA_PASSWORD", "METALAYER_BACKUP_KEY"),
        *("VIEWER_HASH", "OPERATOR_HASH"),
    }
    for name in secret:
        assert variables(TEXT)[name] == (":?", f"set {name}")
        assert f"#{name}=" in (PROJECT_ROOT / ".env.example").read_text()
        assert f"`{name}`" in DOCS
    with pytest.raises(KeyError):
        filled(OURS["code"]["environment"]["METALAYER_DATABASE_URL"], {})
    assert variables("a $${NOT_ONE} ${ONE:-2}") == {"ONE": (":-", "2")}


@pytest.mark.parametrize("name", SERVICES)
def test_variables_are_known_to_who_gets_them(name: str) -> None:
    environment = set(SERVICES[name].get("environment", {}))
    if name not in OURS:
        assert environment == KNOWN[name]
        return
    ours = {ENV_PREFIX + field.upper() for field in Settings.model_fields}
    assert environment - {"DAGSTER_HOME", "DAGSTER_PG_URL"} <= ours
    assert "env:DAGSTER_PG_URL" in (PROJECT_ROOT / "dagster.yaml").read_text().replace(" ", "")


def test_the_settings_of_each_service_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {name: "pw" for name, (how, _) in variables(TEXT).items() if how == ":?"}
    for service in OURS.values():
        for name, value in service["environment"].items():
            monkeypatch.setenv(name, filled(value, given))
        settings = Settings.load()
        assert settings.env == "prod"
        assert str(settings.home) == image_environment()["METALAYER_HOME"]
        assert str(settings.landing) == image_environment()["METALAYER_LANDING"]
        assert str(settings.dagster_home) == image_environment()["DAGSTER_HOME"]
        assert settings.dagster_home == Path(service["environment"]["DAGSTER_HOME"])


@pytest.mark.parametrize("name", OURS)
def test_commands_and_their_options_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (words(OURS[name]), OURS[name]["healthcheck"]["test"][1:]):
        program, *rest = command
        if program == "python":
            assert rest[0] == "-c"
            ast.parse(rest[1])
            continue
        options = {word for word in rest if word.startswith("--")}
        verbs = list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
        if program == "metalayer":
            assert main([*verbs, "--help"]) == 0, f"there is no `metalayer {' '.join(verbs)}`"
            said = capsys.readouterr().out
        else:
            path = Path(sys.executable).parent / program
            done = subprocess.run([path, *verbs, "--help"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            said = done.stdout
        assert {option for option in options if option not in said} == set()


def test_ports_agree_and_only_this_machine_reaches_them() -> None:
    opened = {}
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            address, outer, inner = port.split(":")
            assert address == "127.0.0.1"
            opened[int(outer)] = (name, int(inner))
    assert opened == {
        8080: ("proxy", 8080),
        8081: ("proxy", 8081),
        8082: ("proxy", 8082),
        9090: ("prometheus", 9090),
        3001: ("grafana", 3000),
    }
    for port in opened:
        assert str(port) in DOCS
    # Whoever names a service names a port that it listens at.
    listening = {"postgres": "5432", "prometheus": "9090"}
    listening |= {"metrics": str(METRICS_PORT), "quality": str(QUALITY_PORT)}
    for name in ("code", "webserver", "viewer"):
        command = words(SERVICES[name])
        listening[name] = command[command.index("--port") + 1]
    text = re.sub(r"image: .*", "", TEXT)
    named = re.findall(rf"\b({'|'.join(SERVICES)}):(\d+)\b", text)
    assert {pair for pair in named if listening.get(pair[0]) != pair[1]} == set()
    assert {name for name, _ in named} >= {"postgres", "metrics", "prometheus", "viewer"}


def test_nobody_reaches_the_web_interface_without_saying_who_they_are() -> None:
    caddyfile = filled(COMPOSE["configs"]["caddyfile"]["content"], {})
    sites = dict(re.findall(r"(?ms)^:(\d+) \{\n(.*?)^\}", caddyfile))
    assert set(sites) == {"8079", "8080", "8081", "8082"}
    for port, who, to in (
        ("8080", "VIEWER", "viewer:3000"),
        ("8081", "OPERATOR", "webserver:3000"),
        ("8082", "VIEWER", "quality:3200"),
    ):
        assert f"basic_auth {{\n    {{${who}_NAME}} {{${who}_HASH}}" in sites[port]
        assert f"reverse_proxy {to} " in sites[port]
    assert "reverse_proxy" not in sites["8079"]
    assert "--read-only" in words(SERVICES["viewer"])
    assert "--read-only" not in words(SERVICES["webserver"])
    for name in ("viewer", "webserver", "quality"):
        assert "ports" not in SERVICES[name]


def test_what_is_mounted_is_there_and_what_writes_has_a_volume() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            assert target.startswith("/")
            if source.startswith("./"):
                assert source == "./data/landing" or (PROJECT_ROOT / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]
        if name in OURS:
            assert service["read_only"]
            targets = {volume.split(":")[1] for volume in service["volumes"]}
            assert {"/state", "/landing"} <= targets
    used = {v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", [])}
    assert set(COMPOSE["volumes"]) <= used


def test_the_image_says_who_runs_it_and_holds_no_tools() -> None:
    found = instructions()
    stages = [n for n, (word, _) in enumerate(found) if word == "FROM"]
    assert len(stages) == 2
    last = found[stages[1] :]
    assert ("USER", "10001:10001") in last
    run = " ".join(rest for word, rest in last if word == "RUN")
    assert "useradd --uid 10001" in run
    assert "pip install" not in run
    assert "apt-get" not in run
    assert [rest for word, rest in last if word == "COPY"] == ["--from=builder /opt/venv /opt/venv"]
    # Volumes take owner and mode of what the image has in their places.
    made = set(re.findall(r"/\w+(?:/\w+)?", run.partition("install -d")[2].partition("&&")[0]))
    mounted = {v.split(":")[1] for s in OURS.values() for v in s["volumes"]}
    assert {place for place in mounted if not place.endswith(".yaml")} <= made
    assert image_environment()["DAGSTER_HOME"] in made
    for word, rest in found[: stages[1]]:
        if word == "COPY":
            for source in rest.split(" ")[:-1]:
                assert (PROJECT_ROOT / source).exists(), source


def test_what_the_image_gets_is_all_that_metalayer_needs(tmp_path: Path) -> None:
    """The builder's last steps, from copies of exactly what it copies."""
    found = instructions()
    sources = [
        source
        for word, rest in found
        if word == "COPY" and "--from" not in rest
        for source in rest.split(" ")[:-1]
    ]
    build = tmp_path / "build"
    build.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for source in sources:
        path = PROJECT_ROOT / source
        if path.is_dir():
            shutil.copytree(path, build / source, ignore=ignored)
        else:
            shutil.copyfile(path, build / source)
    # What the lock has is installed here already; the project itself comes from the copies alone.
    made = tmp_path / "venv"
    venv.create(made, with_pip=False, system_site_packages=False)
    (here,) = (p for p in map(Path, sys.path) if p.name == "site-packages")
    (site,) = made.glob("lib/*/site-packages")
    wheels = tmp_path / "wheels"
    subprocess.run(
        [sys.executable, "-c", "import sys; from hatchling.build import build_wheel; "
         "build_wheel(sys.argv[1])", wheels],
        cwd=build, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = wheels.glob("*.whl")
    shutil.unpack_archive(wheel, site, "zip")
    (site / "locked.pth").write_text(f"{here}\n")
    program = (
        "import sys, metalayer, metalayer.settings as s; "
        "assert metalayer.__file__.startswith(sys.argv[1]), metalayer.__file__; "
        "from metalayer.cli import main; from metalayer.catalog import catalog; "
        "from metalayer.definitions import defs; from metalayer.dagster_home import "
        "dagster_environment; dagster_environment(s.Settings.load(), 'postgresql+psycopg2://x/y'); "
        "print(len(catalog().specs), len(list(defs.resolve_all_asset_specs())))"
    )
    done = subprocess.run(
        [made / "bin" / "python", "-I", "-c", program, str(site)],
        cwd=tmp_path,
        env={"METALAYER_HOME": str(tmp_path / "state"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tables, assets = map(int, done.stdout.split())
    assert (tables, assets >= tables) == (19, True)
    assert (tmp_path / "state" / "dagster" / "dagster.yaml").is_file()


def test_the_context_of_the_image_holds_no_secrets_and_no_state() -> None:
    ignored = (PROJECT_ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", ".env", ".env.*", ".metalayer", ".metalayer-*", "data/landing"} <= set(
        ignored
    )
