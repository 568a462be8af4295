"""Settings come from the environment and `.env`, and a wrong one says what to write instead."""

import os
from datetime import date
from pathlib import Path

import pytest

from metalayer.errors import ConfigurationError, MetaLayerError, UsageError
from metalayer.settings import Settings, variables_in_files, without_password


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_nothing_set_means_an_embedded_database_in_the_current_folder(tmp_path: Path) -> None:
    settings = Settings.load()
    assert settings.home == tmp_path / ".metalayer"
    assert settings.landing == tmp_path / ".metalayer" / "landing"
    assert settings.pgdata == tmp_path / ".metalayer" / "postgres"
    assert settings.parsed_dir == tmp_path / ".metalayer" / "parsed"
    assert settings.dagster_home == tmp_path / ".metalayer" / "dagster"
    assert settings.database_url is None
    assert settings.start_month == date(2020, 1, 1)
    assert 1 <= settings.workers <= (os.cpu_count() or 1)


def test_reading_settings_creates_nothing(tmp_path: Path) -> None:
    Settings.load()
    assert list(tmp_path.iterdir()) == []


def test_the_environment_wins_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path(".env").write_text("METALAYER_WORKERS=3\nMETALAYER_START_MONTH=2021-07\nOTHER=x\n")
    monkeypatch.setenv("METALAYER_WORKERS", "5")
    settings = Settings.load()
    assert (settings.workers, settings.start_month) == (5, date(2021, 7, 1))


def test_the_landing_zone_follows_the_home_unless_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METALAYER_HOME", "elsewhere")
    assert Settings.load().landing == tmp_path / "elsewhere" / "landing"
    monkeypatch.setenv("METALAYER_LANDING", "data/landing")
    assert Settings.load().landing == tmp_path / "data" / "landing"


def test_how_many_versions_are_kept_and_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALAYER_KEEP_VERSIONS", "3")
    monkeypatch.setenv("METALAYER_KEEP_VERSION_DAYS", "30")
    settings = Settings.load()
    assert (settings.keep_versions, settings.keep_version_days) == (3, 30)


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "DATABASE_URL", "LANDING", "START_MONTH", "WORKERS"):
        monkeypatch.setenv(f"METALAYER_{name}", "")
    assert Settings.load() == Settings(_env_file=None)


@pytest.mark.parametrize(
    "scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"]
)
def test_every_postgres_url_names_the_driver(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("METALAYER_DATABASE_URL", f"{scheme}://ana:pw@db:5433/sales")
    url = Settings.load().database_url
    assert url is not None
    assert url.get_secret_value() == "postgresql+psycopg2://ana:pw@db:5433/sales"


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALAYER_DATABASE_URL", "postgresql://ana:s3c:r@t@db/sales?password=s3c")
    settings = Settings.load()
    for shown in (repr(settings), str(settings), settings.database_shown):
        assert "s3c" not in shown
        assert "r@t" not in shown
    assert "ana:***@db/sales" in settings.database_shown


@pytest.mark.parametrize(
    "url", ["mysql://a:s3cret@h/d", "s3cret", "postgres://a:s3cret@h", "postgres://a:s3cret@h:x/d"]
)
def test_a_refused_url_keeps_its_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("METALAYER_DATABASE_URL", url)
    with pytest.raises(ConfigurationError, match="METALAYER_DATABASE_URL") as refusal:
        Settings.load()
    assert "s3cret" not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert "postgresql://user:password@host:5432/database" in refusal.value.next_step


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("START_MONTH", "2020-13", "no such month"),
        ("START_MONTH", "2020-01-15", "not a month"),
        ("START_MONTH", "January", "not a month"),
        ("START_MONTH", "2999-01", "future"),
        ("WORKERS", "0", "greater than or equal to 1"),
        ("WORKERS", "1000", "less than or equal to 64"),
        ("WORKERS", "many", "valid integer"),
        ("HOME", __file__, "not a folder"),
        ("LANDING", __file__, "not a folder"),
    ],
)
def test_a_refused_value_is_named_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, cause: str
) -> None:
    monkeypatch.setenv(f"METALAYER_{name}", value)
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load()
    assert str(refusal.value).startswith(f"METALAYER_{name}={value!r} cannot be used: ")
    assert cause in str(refusal.value)
    assert f"METALAYER_{name}=" in refusal.value.next_step or "Set it" in refusal.value.next_step


def test_a_file_that_is_not_text_is_named() -> None:
    Path(".env").write_bytes(b"METALAYER_HOME=\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"\.env is not UTF-8"):
        Settings.load()


def test_masking_a_password_keeps_the_rest() -> None:
    assert without_password("postgresql://db/sales") == "postgresql://db/sales"
    assert without_password("postgresql://ana@db/sales") == "postgresql://ana@db/sales"
    shown = without_password("postgresql://ana:pw@db/sales?sslmode=require&password=pw")
    assert shown == "postgresql://ana:***@db/sales?sslmode=require&password=***"


def test_an_error_reads_as_cause_and_next_step() -> None:
    assert str(MetaLayerError("No table silver.x", "Write one.")) == "No table silver.x. Write one."
    assert str(MetaLayerError("What now?", "Rest.")) == "What now? Rest."
    assert str(MetaLayerError("Alone")) == "Alone"
    assert (UsageError.exit_code, MetaLayerError.exit_code) == (2, 1)


def test_each_environment_has_a_home_and_a_file_above_the_common_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path(".env").write_text("METALAYER_WORKERS=2\nMETALAYER_START_MONTH=2021-01\n")
    Path(".env.staging").write_text("METALAYER_WORKERS=3\nMETALAYER_KEEP_VERSIONS=7\n")
    dev = Settings.load()
    assert (dev.env, dev.home, dev.workers) == ("dev", tmp_path / ".metalayer", 2)
    monkeypatch.setenv("METALAYER_ENV", "staging")
    staging = Settings.load()
    assert (staging.env, staging.home) == ("staging", tmp_path / ".metalayer-staging")
    assert staging.landing == tmp_path / ".metalayer-staging" / "landing"
    assert (staging.workers, staging.keep_versions) == (3, 7)
    assert staging.start_month == date(2021, 1, 1)
    monkeypatch.setenv("METALAYER_WORKERS", "5")
    assert Settings.load().workers == 5


def test_the_common_file_may_choose_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path(".env").write_text("METALAYER_ENV=prod\n")
    Path(".env.prod").write_text("METALAYER_WORKERS=6\nMETALAYER_ENV=dev\n")
    settings = Settings.load()
    assert (settings.env, settings.workers) == ("prod", 6)
    assert settings.home == tmp_path / ".metalayer-prod"
    monkeypatch.setenv("METALAYER_ENV", "dev")
    assert Settings.load().env == "dev"


def test_what_a_shell_exports_is_not_meant_for_other_environments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path(".env.prod").write_text("METALAYER_DATABASE_URL=postgresql://ann:pw@db/sales\n")
    for name, value in (("HOME", "mine"), ("DATABASE_URL", "postgresql://me@here/mine")):
        monkeypatch.setenv(f"METALAYER_{name}", value)
    monkeypatch.setenv("METALAYER_WHY", "a bug")
    dev, prod = Settings.load_for("dev"), Settings.load_for("prod")
    assert (dev.home, prod.home) == (tmp_path / "mine", tmp_path / ".metalayer-prod")
    assert "here/mine" in dev.database_shown
    assert "ann:***@db/sales" in prod.database_shown
    assert (dev.why, prod.why) == ("a bug", "a bug")
    assert Settings.load_for("staging").database_url is None
    assert variables_in_files("prod") == {".env.prod": ["METALAYER_DATABASE_URL"]}


@pytest.mark.parametrize("where", ["shell", ".env"])
def test_an_environment_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "shell":
        monkeypatch.setenv("METALAYER_ENV", "production")
    else:
        Path(".env").write_text("METALAYER_ENV=production\n")
    with pytest.raises(ConfigurationError, match="METALAYER_ENV='production'") as refusal:
        Settings.load()
    assert "dev, staging, prod" in refusal.value.next_step
    assert list(Settings.problems()) == ["env"]


def test_the_file_of_an_environment_that_is_not_text_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("METALAYER_WORKERS=2\n")
    Path(".env.prod").write_bytes(b"METALAYER_HOME=\xff\xfe")
    assert Settings.load().workers == 2
    monkeypatch.setenv("METALAYER_ENV", "prod")
    with pytest.raises(ConfigurationError, match=r"\.env\.prod is not UTF-8"):
        Settings.load()
