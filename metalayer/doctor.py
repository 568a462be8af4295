"""Whether this machine and these settings can run MetaLayer, and how to mend what is wrong.

Each check answers for itself, so that one broken thing does not hide the next; settings that are
refused are replaced by their defaults for the checks after them. Printing is the command's.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2

from metalayer.errors import ConfigurationError, MetaLayerError
from metalayer.governance.sealing import known_keys
from metalayer.inspection import libpq_url
from metalayer.settings import (
    ENV_PREFIX,
    ENVIRONMENTS,
    PROJECT_ROOT,
    Settings,
    chosen_environment,
    default_home,
    env_files,
)
from metalayer.warehouse.keys import opener
from metalayer.warehouse.server import warehouse_server
from metalayer.wording import named

_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 11), (3, 14)
_GB = 1024**3
# A new embedded server takes 0.1 GB, its write-ahead log up to 8 GB under load.
_LEAST_DISK = 1 * _GB


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `fix` says how to mend it, and is empty where it is well."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


@dataclass
class Diagnosis:
    """All checks, and the database as a URL for psql or psycopg2, without a password.

    The embedded server answers at that URL while any command runs. None: settings name none.
    """

    checks: list[Check] = field(default_factory=list)
    database_url: str | None = None

    @property
    def is_well(self) -> bool:
        """Whether no check found anything wrong."""
        return all(check.ok for check in self.checks)


def examine(progress: Callable[[str], None] | None = None) -> Diagnosis:
    """Look at everything. Starts the embedded PostgreSQL, making its folder if it is new."""
    found = Diagnosis()
    found.checks += [_python(), _dependencies()]
    settings, refused = _settings()
    found.checks += _settings_checks(settings, refused)
    if "home" not in refused:
        found.checks += [_folder("home", settings.home), _disk(settings.home)]
    if "landing" not in refused and ("home" not in refused or os.environ.get("METALAYER_LANDING")):
        found.checks.append(_folder("landing zone", settings.landing))
    needs = "database_url" if "database_url" in refused or settings.database_url else "home"
    if needs in refused:
        variable = ENV_PREFIX + needs.upper()
        found.checks.append(
            Check("postgresql", False, f"not tried: {variable} is refused", f"Mend {variable}.")
        )
    else:
        checks, found.database_url = _postgresql(settings, progress)
        found.checks += checks
    if settings.alert_urls is not None:
        found.checks.append(_alerts(settings))
    return found


def _alerts(settings: Settings) -> Check:
    """Whether the addresses of alerts can be read. Nothing is sent."""
    from metalayer.operations.alerts import addresses

    try:
        return Check("alerts", True, f"{len(addresses(settings)):,} to be told")
    except ConfigurationError as error:
        return Check("alerts", False, error.message, error.next_step)


def _python() -> Check:
    fits = _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON
    wanted = " to ".join(f"{major}.{minor}" for major, minor in (_OLDEST_PYTHON, _NEWEST_PYTHON))
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", fits, detail, "" if fits else f"Run it with Python {wanted}.")


def _dependencies() -> Check:
    """Whether what is installed is what the lock file says."""
    lock = PROJECT_ROOT / "requirements.lock"
    if not lock.is_file():
        return Check("dependencies", True, "installed as a package; no lock file to compare with")
    locked = dict(_locked(lock.read_text(encoding="utf-8")))
    wrong = []
    needed = _needed()
    for name in sorted(needed):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if installed != locked.get(name, installed):
            wrong.append(f"{name} {installed} (locked: {locked[name]})")
    if not wrong:
        return Check("dependencies", True, f"{len(needed)} packages as locked")
    return Check(
        "dependencies",
        False,
        named(wrong, 3),
        "Run it through `./run`, which installs what requirements.lock says, "
        "or `pip install -r requirements.lock`.",
    )


def _needed() -> set[str]:
    """Names of the packages that a running MetaLayer needs, directly or through another."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ahead = [Requirement(line) for line in project["project"]["dependencies"]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while ahead:
        wanted = ahead.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for line in importlib.metadata.requires(wanted.name) or ():
                requirement = Requirement(line)
                applies = requirement.marker is None or any(
                    requirement.marker.evaluate({"extra": extra}) for extra in {"", *wanted.extras}
                )
                if applies:
                    ahead.append(requirement)
    return {name for name, _ in seen}


def _locked(text: str) -> Iterator[tuple[str, str]]:
    """Names and versions of a lock file that apply to this Python and system."""
    from packaging.markers import Marker

    for match in re.finditer(r"(?m)^([\w.-]+)==([^\s;\\]+)[ \t]*(?:;([^\\\n]*))?", text):
        name, version, marker = match.groups()
        if not marker or Marker(marker.strip()).evaluate():
            yield name, version


def _settings() -> tuple[Settings, dict[str, ConfigurationError]]:
    """The settings, with defaults for those that are refused; and these with their errors."""
    try:
        refused = Settings.problems()
    except ConfigurationError as error:
        return Settings(_env_file=None), {".env": error}
    env = ENVIRONMENTS[0] if "env" in refused else chosen_environment()
    defaults = Settings.model_construct(env=env, home=default_home(env))
    defaults_of = {"landing": default_home(env) / "landing"}
    with_defaults = {
        name: defaults_of.get(name, getattr(defaults, name)) for name in refused if name != "env"
    }
    return Settings(_env_file=env_files(env), env=env, **with_defaults), refused


def _settings_checks(settings: Settings, refused: dict[str, ConfigurationError]) -> list[Check]:
    """One for each variable."""
    checks = []
    values = {
        "env": settings.env,
        "home": str(settings.home),
        "database_url": libpq_url(settings.database_shown),
        "landing": str(settings.landing),
        "start_month": f"{settings.start_month:%Y-%m}",
        "workers": str(settings.workers),
    }
    for name, value in values.items():
        variable = ENV_PREFIX + name.upper()
        if name in refused:
            error = refused[name]
            checks.append(Check(variable, False, error.message, error.next_step))
        else:
            is_set = bool(os.environ.get(variable)) or name in settings.model_fields_set
            # These are always filled in: the environment, and what follows it and the home.
            filled = {
                "env": ENVIRONMENTS[0],
                "home": default_home(settings.env).resolve(),
                "landing": settings.home / "landing",
            }
            is_default = not is_set or filled.get(name) == getattr(settings, name)
            checks.append(Check(variable, True, f"{value}{' (default)' if is_default else ''}"))
    if ".env" in refused:
        checks.append(Check(".env", False, refused[".env"].message, refused[".env"].next_step))
    return checks


def _folder(what: str, folder: Path) -> Check:
    """A folder that exists and can be written to, or can be made."""
    nearest = _nearest(folder)
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        detail = str(folder) if nearest == folder else f"{folder} (made when it is needed)"
        return Check(what, True, detail)
    variable = "METALAYER_HOME" if what == "home" else "METALAYER_LANDING"
    return Check(
        what,
        False,
        f"{folder} cannot be written to: {nearest} is not yours to change",
        f"Set {variable} to a folder you can write to, or change the permissions of {nearest}.",
    )


def _disk(home: Path) -> Check:
    usage = shutil.disk_usage(_nearest(home))
    detail = f"{usage.free / _GB:,.1f} GB free of {usage.total / _GB:,.1f} GB"
    if usage.free >= _LEAST_DISK:
        return Check("disk", True, detail)
    return Check(
        "disk", False, detail, f"Free {_LEAST_DISK // _GB} GB, or set METALAYER_HOME elsewhere."
    )


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _postgresql(
    settings: Settings, progress: Callable[[str], None] | None
) -> tuple[list[Check], str | None]:
    """Whether the server answers, and the keys of its encrypted columns are at hand; its URL."""
    try:
        with warehouse_server(settings, progress) as server:
            url = libpq_url(server.warehouse_url)
            with contextlib.closing(psycopg2.connect(url, connect_timeout=10)) as connection:
                version = connection.info.parameter_status("server_version")
                keys = _keys(connection, settings)
            detail = f"PostgreSQL {version}, {libpq_url(settings.database_shown)}"
            return [Check("postgresql", True, detail), keys], _passwordless(url)
    except MetaLayerError as error:
        return [Check("postgresql", False, error.message, error.next_step)], None
    except psycopg2.Error as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return [Check("postgresql", False, lines[0], "Look into the server's log.")], None


def _keys(connection: Any, settings: Settings) -> Check:
    """Whether the keys are at hand that encrypted columns are sealed with."""
    try:
        with connection.cursor() as cursor:
            opener(cursor, settings)
        known = ", ".join(key.id for key in known_keys(settings))
    except MetaLayerError as error:
        return Check("encryption keys", False, error.message, error.next_step)
    return Check("encryption keys", True, known or "none; one is made when it is needed")


def _passwordless(url: str) -> str:
    parts = urlsplit(url)
    login, at, place = parts.netloc.rpartition("@")
    query = "&".join(
        each for each in parts.query.split("&") if not re.match(r"(?i)(ssl)?password=", each)
    )
    return urlunsplit(parts._replace(netloc=login.partition(":")[0] + at + place, query=query))
