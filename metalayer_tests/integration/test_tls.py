"""TLS settings of METALAYER_DATABASE_URL hold for the warehouse and for Dagster's storage alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from metalayer.assets.headless import build, dagster_instance
from metalayer.assets.resources import open_warehouse
from metalayer.catalog import catalog
from metalayer.errors import WarehouseError
from metalayer.inspection import reading
from metalayer.landing.ledger import register
from metalayer.settings import Settings
from metalayer.warehouse.pool import connect_pool, transaction
from metalayer.warehouse.server import warehouse_server
from metalayer_tests.integration.test_build import ORDERS, order
from metalayer_tests.integration.tls import Proxy, authority, certificate, tls_proxy


@dataclass
class Encrypted:
    """A warehouse that is reached by TLS only, as `localhost`."""

    settings: Settings
    proxy: Proxy
    database: str
    ca: Path
    other_ca: Path

    def over(self, host: str = "localhost", **query: object) -> Settings:
        """Settings with another way to the same database."""
        words = "&".join(f"{name}={value}" for name, value in query.items())
        url = f"postgresql://postgres@{host}:{self.proxy.port}/{self.database}?{words}"
        # As `Settings.load` does: validated.
        return Settings(
            _env_file=None,
            home=self.settings.home,
            landing=self.settings.landing,
            database_url=SecretStr(url),
        )


@pytest.fixture(scope="module")
def keys(module_folder: Path) -> tuple[tuple[Path, Path], Path, Path]:
    """Certificate and key of `localhost`, its authority, and another authority."""
    ours, other = authority(module_folder, "ours"), authority(module_folder, "other")
    return certificate(module_folder, ours, "localhost"), ours[0], other[0]


@pytest.fixture
def encrypted(
    settings: Settings,
    keys: tuple[tuple[Path, Path], Path, Path],
) -> Iterator[Encrypted]:
    assert settings.database_url is not None
    own = make_url(settings.database_url.get_secret_value())
    assert own.database is not None
    files, ca, other = keys
    with tls_proxy(files, f"{own.query['host']}/.s.PGSQL.5432") as proxy:
        yield Encrypted(settings, proxy, own.database, ca, other)


def test_a_build_goes_over_tls_from_end_to_end(encrypted: Encrypted, dagster_url: str) -> None:
    settings = encrypted.over(sslmode="verify-full", sslrootcert=encrypted.ca)
    folder = settings.landing / "erp"
    folder.mkdir(parents=True)
    (folder / "orders.csv").write_text(ORDERS + order(1, "2025-01-05"))
    with (
        open_warehouse(settings) as warehouse,
        warehouse_server(settings) as server,
        dagster_instance(settings, server.dagster_url) as instance,
    ):
        register(warehouse.pool, settings, catalog().sources, still_seconds=0.0)
        done = build(warehouse, instance, selected={"bronze.orders", "silver.orders"})
        assert done.succeeded
        assert instance.get_runs_count() == len(done.runs) == 1
        storage = make_url(server.dagster_url)
        assert storage.port == encrypted.proxy.port
        assert storage.query["sslmode"] == "verify-full"
    with reading(settings) as connection, connection.cursor() as cursor:
        assert connection.info.ssl_in_use
        cursor.execute("select count(*) from silver.orders")
        assert cursor.fetchone() == (1,)
    # Warehouse, Dagster's runs and events, reader: no connection did without.
    assert encrypted.proxy.encrypted >= 5
    assert encrypted.proxy.refused == 0


def test_storage_in_a_schema_keeps_the_tls_settings(encrypted: Encrypted) -> None:
    run(
        encrypted, f'create role plain login; grant all on database "{encrypted.database}" to plain'
    )
    try:
        settings = encrypted.over(sslmode="verify-full", sslrootcert=encrypted.ca, user="plain")
        with warehouse_server(settings) as server:
            query = make_url(server.dagster_url).query
            assert (query["sslmode"], query["options"]) == ("verify-full", "-csearch_path=dagster")
    finally:
        run(encrypted, "drop owned by plain cascade; drop role plain")


def run(encrypted: Encrypted, statement: str) -> None:
    """On the server directly, by its socket."""
    assert encrypted.settings.database_url is not None
    pool = connect_pool(encrypted.settings.database_url.get_secret_value(), 1)
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
    pool.dispose()


@pytest.mark.parametrize(
    ("host", "trusted", "cause"),
    [
        ("127.0.0.1", "ca", "does not match host name"),
        ("localhost", "other_ca", "certificate verify failed"),
        ("localhost", "nowhere", "does not exist"),
    ],
)
def test_a_server_that_cannot_be_trusted_is_refused(
    encrypted: Encrypted, host: str, trusted: str, cause: str
) -> None:
    root = getattr(encrypted, trusted, "/nowhere/root.crt")
    settings = encrypted.over(host, sslmode="verify-full", sslrootcert=root)
    for attempt in (warehouse_server, reading):
        with pytest.raises(WarehouseError, match=cause) as refused, attempt(settings):
            pass
        assert "sslrootcert" in refused.value.next_step


def test_a_connection_without_tls_gets_nothing(encrypted: Encrypted) -> None:
    with (
        pytest.raises(WarehouseError, match="cannot be reached"),
        warehouse_server(encrypted.over(sslmode="disable")),
    ):
        pass
    assert encrypted.proxy.refused == 1
