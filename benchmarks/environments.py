"""Environments of their own for contenders whose dependencies are none of the project's.

Made by uv from a pinned file in requirements/, and kept: a later run with the same file takes the
environment that is there.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.contender import BenchmarkError
from metalayer.settings import PROJECT_ROOT

_REQUIREMENTS = Path(__file__).with_name("requirements")
_ENVIRONMENTS = PROJECT_ROOT / ".venv-benchmarks"
_READY = "ready"


def environment(name: str) -> Path:
    """Folder of the programs (`python`, `dbt`, ...) of the environment for a contender.

    Raises:
        BenchmarkError: when uv is not there or cannot install it.
    """
    requirements = _REQUIREMENTS / f"{name}.txt"
    folder = _ENVIRONMENTS / name
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    ready = folder / _READY
    if not (ready.is_file() and ready.read_text() == wanted):
        print(f"installing {requirements.name} into {folder}", flush=True)
        _uv("venv", "--clear", "--python", sys.executable, str(folder))
        python = str(folder / "bin" / "python")
        _uv("pip", "install", "--python", python, "--requirements", str(requirements))
        ready.write_text(wanted)
    return folder / "bin"


def _uv(*arguments: str) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise BenchmarkError(
            "uv, which makes the environments of some contenders, is not there",
            "Install it (pip install uv), or leave them out with --only metalayer,psql,duckdb",
        )
    done = subprocess.run([uv, *arguments], capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"uv {' '.join(arguments[:2])} failed:\n{done.stderr[-2000:]}")
