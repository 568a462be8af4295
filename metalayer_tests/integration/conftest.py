"""The platform that integration tests tell stories about."""

from collections.abc import Iterator

import dagster as dg
import pytest
from sqlalchemy import Engine

from metalayer.assets.resources import Warehouse
from metalayer.settings import Settings
from metalayer_tests.story import Platform


@pytest.fixture
def platform(settings: Settings, pool: Engine) -> Iterator[Platform]:
    """An empty warehouse with its tables, and a Dagster instance that forgets."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(Warehouse(pool, settings), instance)
