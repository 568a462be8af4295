"""The platform that integration tests tell stories about."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import Engine

from metalayer.assets.resources import Warehouse
from metalayer.settings import Settings
from metalayer.warehouse.pool import connect_pool
from metalayer_tests.story import Platform


@pytest.fixture
def platform(settings: Settings, pool: Engine) -> Iterator[Platform]:
    """An empty warehouse with its tables, and a Dagster instance that forgets."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(Warehouse(pool, settings), instance)


@pytest.fixture
def make_platform(
    tmp_path: Path, clone: Callable[[], contextlib.AbstractContextManager[str]]
) -> Iterator[Callable[[], Platform]]:
    """Makes further platforms, each with a database and folders of its own."""
    with contextlib.ExitStack() as stack:

        def make() -> Platform:
            url = stack.enter_context(clone())
            home = tmp_path / url.partition("?")[0].rpartition("/")[2]
            settings = Settings(
                _env_file=None,
                home=home,
                landing=home / "landing",
                database_url=url,
                # That of the test's own platform: what is encrypted can be compared.
                encryption_key_file=tmp_path / "home" / "encryption.keys",
            )
            pool = connect_pool(url, 4)
            stack.callback(pool.dispose)
            instance = stack.enter_context(dg.DagsterInstance.ephemeral())
            return Platform(Warehouse(pool, settings), instance)

        yield make


@pytest.fixture
def keys_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are settled in parts, as those of files with many millions of rows are."""
    monkeypatch.setattr("metalayer.landing.settle._KEYS_AT_ONCE", 2)


@pytest.fixture
def mounted() -> Iterator[Callable[[int], Path]]:
    """Mounts small disks."""
    with contextlib.ExitStack() as stack:

        def mount(size: int) -> Path:
            folder = Path(tempfile.mkdtemp(dir=os.environ["TESTED_METALAYER_HOME"]))
            folder.chmod(0o711)
            made = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "tmpfs", str(folder)],
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode:
                assert "CI" not in os.environ, made.stderr
                pytest.skip(f"this account may not mount a disk: {made.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return folder

        yield mount
