"""A process from which commands are forked that kill themselves, or PostgreSQL, at a named point.

Run as a program it imports all of MetaLayer once, then takes one order a line from its input and
answers with one line. A command is thus on its way in milliseconds instead of seconds. The points
are functions of MetaLayer, wrapped in the fork alone: nothing in the product knows of them.

Belongs here: how a command is run and killed. Which points there are, and what must hold after,
belongs to the tests.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metalayer.settings import ENV_PREFIX, PROJECT_ROOT


@dataclass(frozen=True)
class Kill:
    """Who dies where.

    Attributes:
        point: "module:function" or "module:Class.method", below `metalayer`.
        when: "before" the call or "after" it.
        call: The how manieth call.
        victims: "postgres" and/or "run".
    """

    point: str
    when: str
    call: int
    victims: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code; negative: the signal that ended it.
        said: What it printed.
        was_reached: Whether the point of its kill was reached.
    """

    code: int
    said: str
    was_reached: bool


class Commands:
    """Commands of one home."""

    def __init__(self, home: Path, landing: Path) -> None:
        self._home = home
        self._environment = {
            "METALAYER_HOME": str(home),
            "METALAYER_LANDING": str(landing),
            # How often a point is passed must not depend on the machine.
            "METALAYER_WORKERS": "2",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=home.parent,
            env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *arguments: str,
        kill: Kill | None = None,
        patience: int = 120,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run `metalayer ARGUMENTS` to its end; a command that outlives `patience` is killed."""
        output = self._home.parent / "output"
        reached = self._home.parent / "reached"
        reached.unlink(missing_ok=True)
        order = {
            "arguments": arguments,
            "environment": {**self._environment, **(environment or {})},
            "output": str(output),
            "reached": str(reached),
            "kill": asdict(kill) if kill else None,
            "patience": patience,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Ended(code, output.read_text(errors="replace"), reached.exists())

    def close(self) -> None:
        """End the process; commands have ended before."""
        self._process.communicate(timeout=30)


def _serve() -> None:
    # All that a build imports, before there is any thread or connection.
    importlib.import_module("metalayer.cli.running")
    importlib.import_module("metalayer.definitions")
    # Dagster asks a dead PostgreSQL six times over twelve seconds; how often is enough here.
    dagster_postgres: Any = importlib.import_module("dagster_postgres.utils")
    dagster_postgres.calculate_delay = lambda **_: 0.01
    gc.collect()
    gc.freeze()  # or each fork would copy all memory as it looks through it
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(order)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - the answer
    os._exit(0)  # a usual end would complain at length of what was frozen


def _run(order: Mapping[str, Any]) -> None:
    """In the fork: become the command."""
    code = 1
    try:
        os.setsid()
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Who hangs says where, and is ended.
        faulthandler.dump_traceback_later(order["patience"])
        signal.alarm(order["patience"] + 5)
        for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
            del os.environ[name]
        os.environ.update(order["environment"])
        if order["kill"] is not None:
            kill = Kill(**order["kill"])
            _arm(kill, Path(order["environment"]["METALAYER_HOME"]), Path(order["reached"]))
        from metalayer.cli import main

        code = main(order["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _arm(kill: Kill, home: Path, reached: Path) -> None:
    """Wrap the point, so that its nth call kills."""
    name, _, attribute = kill.point.partition(":")
    owner: Any = importlib.import_module(f"metalayer.{name}")
    *classes, function = attribute.split(".")
    for each in classes:
        owner = getattr(owner, each)
    original: Callable[..., Any] = getattr(owner, function)
    calls = iter(range(1, 1_000_000))

    def strike() -> None:
        reached.touch()
        if "postgres" in kill.victims:
            pid = int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
            os.kill(pid, signal.SIGKILL)
        if "run" in kill.victims:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        if number == kill.call and kill.when == "before":
            strike()
        result = original(*args, **kwargs)
        if number == kill.call and kill.when == "after":
            strike()
        return result

    def wrapped_generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
        number = next(calls)
        if number == kill.call and kill.when == "before":
            strike()
        yield from original(*args, **kwargs)
        if number == kill.call and kill.when == "after":
            strike()

    setattr(
        owner, function, wrapped_generator if inspect.isgeneratorfunction(original) else wrapped
    )


if __name__ == "__main__":
    _serve()
