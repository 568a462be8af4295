"""The environment, read once into typed settings.

Every `METALAYER_*` variable is declared here and nowhere else. Files in the current folder give
defaults to them: `.env`, and above it `.env.<environment>`. What is derived from a setting (the
folders under the home) is here too.
Nothing that connects, creates or imports Dagster belongs here: reading settings is free of effects.
"""

import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from metalayer.errors import ConfigurationError

ENV_PREFIX = "METALAYER_"

Environment = Literal["dev", "staging", "prod"]
#: The environments there are; the first is meant where nothing is said.
ENVIRONMENTS: tuple[Environment, ...] = get_args(Environment)
#: The environment in which nothing is destroyed by accident, and into which nothing is copied.
PRODUCTION: Environment = "prod"
_VARIABLE = f"{ENV_PREFIX}ENV"

_PACKAGE = Path(__file__).resolve().parent

# Where `sql/` and `data/` are: beside the package in a clone, inside it in an installed wheel.
PROJECT_ROOT = _PACKAGE if (_PACKAGE / "sql").is_dir() else _PACKAGE.parent

_MONTH = re.compile(r"(\d{4})-(\d{2})")
_DRIVER = "postgresql+psycopg2"

# What to write instead, by setting; shown when a value is refused.
_FIXES = {
    "env": f"Write one of {', '.join(ENVIRONMENTS)}, for example METALAYER_ENV=staging; unset "
    f"it is {ENVIRONMENTS[0]}",
    "home": "Set it to a folder you can write to, for example METALAYER_HOME=.metalayer",
    "database_url": "Write METALAYER_DATABASE_URL=postgresql://user:password@host:5432/database, "
    "or leave it unset for the embedded PostgreSQL",
    "landing": "Set it to a folder, for example METALAYER_LANDING=data/landing",
    "start_month": "Write the first month as YYYY-MM, not after this month, for example "
    "METALAYER_START_MONTH=2020-01",
    "keep_versions": "Write a whole number from 1 to 1000, for example METALAYER_KEEP_VERSIONS=5",
    "keep_version_days": "Write a whole number of days, for example METALAYER_KEEP_VERSION_DAYS=30",
    "landing_interval_seconds": "Write a whole number of seconds, for example "
    "METALAYER_LANDING_INTERVAL_SECONDS=10",
    "max_unpacked_mb": "Write a whole number of megabytes, for example "
    "METALAYER_MAX_UNPACKED_MB=16384",
    "max_unpack_ratio": "Write a whole number, for example METALAYER_MAX_UNPACK_RATIO=200",
    "encryption_key": "Write one key, or several with commas between, the newest first; "
    "`metalayer keys new` prints one",
    "encryption_key_file": "Set it to the file that holds the keys, for example "
    "METALAYER_ENCRYPTION_KEY_FILE=/run/secrets/metalayer.keys",
    "alert_urls": "Write addresses as Apprise has them with spaces between, for example "
    "METALAYER_ALERT_URLS='mailtos://user:password@example.org team:sales-data=slack://...'",
    "backup_url": "Write a folder or a URL as fsspec has it, for example "
    "METALAYER_BACKUP_URL=/mnt/backups/metalayer or s3://bucket/metalayer",
    "backup_key": "Write one key, or several with commas between, the newest first; "
    "`metalayer keys new` prints one",
    "backup_keep_days": "Write a whole number of days, for example METALAYER_BACKUP_KEEP_DAYS=30",
    "backup_hours": "Write a whole number of hours, for example METALAYER_BACKUP_HOURS=24",
    "log_format": "Write console or json, for example METALAYER_LOG_FORMAT=json",
    "why": "Give the reason in at most 1000 characters",
    "workers": "Write a whole number from 1 to 64, for example METALAYER_WORKERS=4",
}


def _cores() -> int:
    """Processors this process may use, which in a container is often fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(64, len(os.sched_getaffinity(0))))
    return max(1, min(64, os.cpu_count() or 1))


class Settings(BaseSettings):
    """What a user can set, typed and checked. Use `Settings.load()`.

    Attributes:
        env: the environment these are of.
        home: absolute folder of all state (embedded PostgreSQL, Dagster, parsed deliveries);
            `.metalayer` unless set, and `.metalayer-<env>` for another environment than dev.
        database_url: SQLAlchemy URL of the user's own PostgreSQL, with the psycopg2 driver named;
            None means the embedded one. Secret, since it holds a password: see `database_shown`.
        landing: absolute folder of the landing zone; `<home>/landing` unless set.
        start_month: first of the first month that is kept.
        workers: months built side by side.
        keep_versions: published states of a month that are kept, the current one included.
        keep_version_days: for how many days a state is kept once another took its place, at most;
            None: for as long as `keep_versions` allows.
        landing_interval_seconds: how often a running platform looks for new files.
        max_unpacked_mb: megabytes to which a gzip may unfold, at most.
        max_unpack_ratio: how many times its size a gzip may unfold to, once past 64 MB.
        why: the reason for what is done, for the audit log.
        encryption_key: keys of encrypted columns, the newest first, with commas between; None
            means that they are in the file.
        encryption_key_file: absolute path of that file; `<home>/encryption.keys` unless set.
        alert_urls: whom to tell what is wrong: Apprise's URLs with spaces between, `owner=` before
            one that is for the tables of an owner only; None tells nobody. Secret.
        backup_url: a folder or bucket, as fsspec has it; None: no backups. Secret, as it may hold
            a password.
        backup_key: keys that backups are encrypted with, the newest first, with commas between;
            None: in plain. Secret.
        backup_keep_days: for how many days any second can be brought back.
        backup_hours: how often a running platform takes a backup.
        log_format: how services log to stderr: for people, or JSON, a line each.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    env: Environment = ENVIRONMENTS[0]
    home: Path = Path()
    database_url: SecretStr | None = None
    landing: Path = Path()
    start_month: Annotated[date, NoDecode] = date(2020, 1, 1)
    workers: int = Field(default_factory=_cores, ge=1, le=64)
    keep_versions: int = Field(default=5, ge=1, le=1000)
    keep_version_days: int | None = Field(default=None, ge=0)
    landing_interval_seconds: int = Field(default=10, ge=1, le=86_400)
    max_unpacked_mb: int = Field(default=16_384, ge=1)
    max_unpack_ratio: int = Field(default=200, ge=1)
    why: str = Field(default="", max_length=1000)
    encryption_key: SecretStr | None = None
    encryption_key_file: Path | None = None
    alert_urls: SecretStr | None = None
    backup_url: SecretStr | None = None
    backup_key: SecretStr | None = None
    backup_keep_days: int = Field(default=30, ge=1, le=36_500)
    backup_hours: int = Field(default=24, ge=1, le=8_760)
    log_format: Literal["console", "json"] = "console"

    @classmethod
    def load(cls) -> Self:
        """Read the environment, `.env.<env>` and `.env`; the earlier wins.

        Raises:
            ConfigurationError: naming the variable, its value and the fix.
        """
        return cls._read(chosen_environment())

    @classmethod
    def load_for(cls, env: Environment) -> "Settings":
        """The settings of an environment, which need not be the one that is chosen.

        What a shell exports is meant for the environment that it chose: those of another are in
        its files alone, or `METALAYER_DATABASE_URL` would make all of them the same place.

        Raises:
            ConfigurationError: naming the variable, its value and the fix.
        """
        if env == chosen_environment():
            return cls.load()
        # The reason is the command's, whichever environment it works with.
        return _OfFiles._read(env, why=os.environ.get(f"{ENV_PREFIX}WHY", ""))

    @classmethod
    def _read(cls, env: Environment, **given: Any) -> Self:
        try:
            return cls(_env_file=env_files(env), env=env, **given)
        except ValidationError as error:
            raise _explained(error.errors(include_url=False, include_context=False)[0]) from None
        except UnicodeDecodeError as error:
            raise _unreadable(env, error) from None

    @classmethod
    def problems(cls) -> dict[str, ConfigurationError]:
        """Every setting that is refused, by its name here; `load` stops at the first.

        Raises:
            ConfigurationError: when `.env` cannot be read at all.
        """
        try:
            env = chosen_environment()
        except ConfigurationError as error:
            return {"env": error}
        try:
            cls(_env_file=env_files(env), env=env)
        except ValidationError as error:
            refused = error.errors(include_url=False, include_context=False)
            return {str(each["loc"][0]): _explained(each) for each in refused if each["loc"]}
        except UnicodeDecodeError as error:
            raise _unreadable(env, error) from None
        return {}

    @model_validator(mode="before")
    @classmethod
    def _folders_follow(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The home follows the environment, the landing zone the home."""
        home = values.get("home") or default_home(values.get("env") or ENVIRONMENTS[0])
        return {**values, "home": home, "landing": values.get("landing") or Path(home) / "landing"}

    @field_validator("home", "landing")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        try:
            folder = folder.expanduser().resolve()
        except (RuntimeError, OSError) as error:
            raise ValueError(str(error)) from None
        if folder.exists() and not folder.is_dir():
            raise ValueError("it is a file, not a folder")
        return folder

    @field_validator("encryption_key_file")
    @classmethod
    def _absolute_file(cls, path: Path | None) -> Path | None:
        if path is None:
            return None
        path = path.expanduser().absolute()
        if path.is_dir():
            raise ValueError("it is a folder, not a file")
        return path

    @field_validator("database_url")
    @classmethod
    def _names_the_driver(cls, url: SecretStr | None) -> SecretStr | None:
        # Without a driver SQLAlchemy 2.1 takes psycopg 3, with which dagster-postgres breaks.
        if url is None:
            return None
        scheme, separator, rest = url.get_secret_value().strip().partition("://")
        if not separator or scheme.split("+")[0] not in ("postgres", "postgresql"):
            raise ValueError("it is not a PostgreSQL URL")
        try:
            parts = urlsplit(f"{_DRIVER}://{rest}")
            _ = parts.port
        except ValueError:
            raise ValueError("its host or port cannot be read") from None
        if not parts.path.strip("/"):
            raise ValueError("it names no database")
        return SecretStr(f"{_DRIVER}://{rest}")

    @field_validator("start_month", mode="before")
    @classmethod
    def _first_of_month(cls, value: object) -> date:
        if isinstance(value, date):
            month = value.replace(day=1)
        else:
            match = _MONTH.fullmatch(str(value).strip())
            if match is None:
                raise ValueError("it is not a month")
            try:
                month = date(int(match[1]), int(match[2]), 1)
            except ValueError:
                raise ValueError("there is no such month") from None
        if month > datetime.now(UTC).date():
            raise ValueError("it lies in the future")
        return month

    @property
    def dagster_home(self) -> Path:
        """Folder of the Dagster instance (its `dagster.yaml` and logs)."""
        return self.home / "dagster"

    @property
    def parsed_dir(self) -> Path:
        """Folder of the parsed deliveries: a cache, rebuilt from the landed files."""
        return self.home / "parsed"

    @property
    def pgdata(self) -> Path:
        """Data folder of the embedded PostgreSQL."""
        return self.home / "postgres"

    @property
    def embedded_home(self) -> Path | None:
        """The folder that the embedded PostgreSQL lives in; None with a server of one's own."""
        return self.home if self.database_url is None else None

    @property
    def log_file(self) -> Path:
        """What was done, a line of JSON each: see `metalayer.logs`."""
        return self.home / "logs" / "metalayer.jsonl"

    @property
    def database_shown(self) -> str:
        """The database for people: the URL without its password, or `embedded in <folder>`."""
        if self.database_url is None:
            return f"embedded in {self.pgdata}"
        return without_password(self.database_url.get_secret_value())


class _OfFiles(Settings):
    """Settings of an environment that the shell has not chosen."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, dotenv_settings


def default_home(env: str) -> Path:
    """The home of an environment for which none is set."""
    return Path(".metalayer" if env == ENVIRONMENTS[0] else f".metalayer-{env}")


def chosen_environment() -> Environment:
    """The environment that METALAYER_ENV names, in the shell or in `.env`; dev where it is unset.

    Raises:
        ConfigurationError: when there is none of that name.
    """
    said = os.environ.get(_VARIABLE) or _variables(Path(".env")).get(_VARIABLE)
    for env in ENVIRONMENTS:
        if said in (env, None, ""):
            return env
    raise ConfigurationError(
        f"{_VARIABLE}={said!r} cannot be used: there is no such environment", _FIXES["env"]
    )


def variables_in_files(env: Environment) -> dict[str, list[str]]:
    """File -> the METALAYER_* variables that it sets for an environment; the later file wins.

    Raises:
        ConfigurationError: when a file is no text.
    """
    found = {path.name: sorted(_variables(path)) for path in env_files(env)}
    return {name: variables for name, variables in found.items() if variables}


def env_files(env: Environment) -> tuple[Path, Path]:
    """The files that set variables for an environment; the later one wins."""
    return Path(".env"), Path(f".env.{env}")


def _variables(path: Path) -> dict[str, str]:
    """The METALAYER_* variables that a file sets to something; none if it is not there."""
    try:
        values = dotenv_values(path, encoding="utf-8", interpolate=False) if path.is_file() else {}
    except UnicodeDecodeError as error:
        raise _no_text(path, error) from None
    return {
        name.upper(): value
        for name, value in values.items()
        if name.upper().startswith(ENV_PREFIX) and value
    }


def _unreadable(env: Environment, error: UnicodeDecodeError) -> ConfigurationError:
    """Which of the files is no text."""
    for path in env_files(env):
        try:
            path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except UnicodeDecodeError as found:
            return _no_text(path, found)
    return _no_text(Path(".env"), error)


def _no_text(path: Path, error: UnicodeDecodeError) -> ConfigurationError:
    return ConfigurationError(
        f"The file {path.resolve()} is not UTF-8 text: {error.reason}",
        "Save it as UTF-8, or remove it.",
    )


def without_password(url: str) -> str:
    """The same URL with `***` in place of its password, wherever libpq would take one from.

    >>> without_password("postgresql://ana:secret@db/sales?password=secret")
    'postgresql://ana:***@db/sales?password=***'
    """
    # A password may itself hold an '@', a '/' or a '?': the last '@' is where the host begins.
    scheme, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    if at and ":" in login:
        login = login.partition(":")[0] + ":***"
    place = re.sub(r"(?i)((?:^|[?&])(?:ssl)?password=)[^&]*", r"\1***", place)
    return f"{scheme}://{login}{at}{place}"


def _explained(refused: Mapping[str, Any]) -> ConfigurationError:
    """A refused setting as an error that names variable, value, cause and fix."""
    name = str(refused["loc"][0]) if refused["loc"] else "settings"
    variable = ENV_PREFIX + name.upper()
    value = str(refused.get("input", ""))
    if name == "database_url":
        value = without_password(value) if "://" in value else "***"
    cause = refused["msg"].removeprefix("Value error, ")
    cause = cause[:1].lower() + cause[1:]
    return ConfigurationError(f"{variable}={value!r} cannot be used: {cause}", _FIXES.get(name, ""))
