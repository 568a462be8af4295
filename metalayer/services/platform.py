"""The platform as one: PostgreSQL, code server, webserver and daemon, until somebody ends it.

    PostgreSQL --> the tables, and Dagster's --> code server --> webserver, daemon
               --> metrics, alerts, backup, quality page

The code server loads while the tables are made, the other two once both are there. A process that
dies is started again. Does not belong here: how one process is run (`child.py`), or what is said
about the work (`activity.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from metalayer.dagster_home import dagster_environment
from metalayer.errors import UsageError, WarehouseError
from metalayer.operations import METRICS_PORT
from metalayer.pages import QUALITY_PORT
from metalayer.services.child import Child, end_all, wait_until
from metalayer.services.editing import DefinitionFiles
from metalayer.services.news import News
from metalayer.settings import ENV_PREFIX, Settings
from metalayer.warehouse.archiving import begin_archiving
from metalayer.warehouse.server import WarehouseServer, open_lock, warehouse_server

Tell = Callable[[str], None]

#: Everything is to be gone within ten seconds of the signal; PostgreSQL needs some of them.
_PATIENCE_SECONDS = 5.0
_START_SECONDS = 120.0
#: All addresses of a machine -> one at which it reaches itself.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
#: A process that dies is started again, but not if it did so this often within this time.
_MOST_RESTARTS, _RESTARTS_WITHIN = 5, 300.0
#: Processes that only look, and when they are started again: after so long at first, and at most.
_WATCHERS, _WATCHER_SECONDS = frozenset(("metrics", "alerts", "backup", "quality")), (1.0, 300.0)


@dataclass(frozen=True)
class Address:
    """Where the web interface listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """What to open in a browser on this machine."""
        return self._at("localhost" if self.host in ("127.0.0.1", *_EVERYWHERE) else self.host)

    @property
    def local_url(self) -> str:
        """The same with a number for a name: nobody else's."""
        return self._at(_EVERYWHERE.get(self.host, self.host))

    def _at(self, host: str) -> str:
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


@contextlib.contextmanager
def only_one(settings: Settings) -> Iterator[Callable[[str], None]]:
    """Let this be the only platform of the home; call what it gives with the URL, once known.

    Raises:
        UsageError: when one runs, saying where.
    """
    path = settings.home / "up.lock"
    handle = open_lock(settings, path.name)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _is_running(path, settings) from None
        os.ftruncate(handle, 0)

        def listens(url: str) -> None:
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)

        yield listens
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _is_running(path: Path, settings: Settings) -> UsageError:
    with contextlib.suppress(OSError, ValueError, KeyError):
        said = json.loads(path.read_text())
        return UsageError(
            f"MetaLayer is up already at {said['url']} (process {said['pid']}), "
            f"for METALAYER_HOME={settings.home}",
            "Open it there, end it with Ctrl-C where it runs, or set another METALAYER_HOME.",
        )
    return UsageError(
        f"MetaLayer is starting or ending already for METALAYER_HOME={settings.home}",
        "Wait a moment, or set another METALAYER_HOME.",
    )


def free_address(host: str, port: int, option: str = "--port") -> Address:
    """The address to listen at; port 0 takes a free one, `option` is where another is chosen.

    Raises:
        UsageError: when the port is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise UsageError(f"{port} is no port", "Choose one from 1 to 65535.") from None
        except OSError as error:
            raise UsageError(
                f"Nothing can listen at {host}, port {port}: {error.strerror}",
                f"Choose another with `{option} {port + 1}`, or end what uses it.",
            ) from None
        return Address(host, int(probe.getsockname()[1]))


@dataclass
class _Watcher:
    """A process that only looks: since when it runs, or has ended, and how long it is waited."""

    began: float
    ended: float | None = None
    wait: float = 0.5


class Platform:
    """The processes of one home.

    Args:
        settings: Which home and which PostgreSQL.
        host, port: Where the web interface is to listen; port 0 takes a free one.
        tell: Told in a line what is going on.
        read_only: Whether the web interface only shows. Sensors and schedules work all the same.
        metrics_port: Where Prometheus fetches metrics, as `port`; None takes the usual one, and a
            free one where that is taken.
        quality_port: Where the quality page is, in the same way.
    """

    def __init__(
        self,
        settings: Settings,
        host: str,
        port: int,
        tell: Tell,
        *,
        read_only: bool = False,
        metrics_port: int | None = None,
        quality_port: int | None = None,
    ) -> None:
        self.settings = settings
        self.address = Address(host, port)
        self.metrics = Address(host, METRICS_PORT)
        self.quality = Address(host, QUALITY_PORT)
        self._metrics_port = metrics_port
        self._quality_port = quality_port
        self._tell = tell
        self._read_only = read_only
        self._ending = False
        self._has_begun_to_end = False
        self._restarts: list[float] = []
        self._watchers: dict[str, _Watcher] = {}

    def run(self, prepare: Callable[[], None], ready: Callable[[], None]) -> None:
        """Start everything, say when it is ready, and keep it running until a signal ends it.

        Args:
            prepare: Called once the tables of the warehouse and of Dagster are there.
            ready: Called once the web interface answers.

        Raises:
            UsageError: when a platform of this home runs, or the port is taken.
            WarehouseError: when something does not start, or keeps ending.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals())
            listens = stack.enter_context(only_one(self.settings))
            self.address = free_address(self.address.host, self.address.port)
            taken = {self.address.port: "the web interface's"}
            self.metrics = self._beside("--metrics-port", self._metrics_port, METRICS_PORT, taken)
            taken[self.metrics.port] = "the metrics'"
            self.quality = self._beside("--quality-port", self._quality_port, QUALITY_PORT, taken)
            listens(self.address.url)
            sockets = Path(stack.enter_context(_private_folder()))
            stack.callback(self._say_ended)
            if self.settings.backup_url is not None and self.settings.database_url is None:
                begin_archiving(self.settings.pgdata)
            server = stack.enter_context(warehouse_server(self.settings, self._say))
            children = self._children(server, sockets / "code")
            code = children.pop("code server")
            definitions = DefinitionFiles(code, self._say)
            stack.callback(lambda: self._end([code, *children.values(), *definitions.trials]))
            code.start()
            # Takes as long as the code server takes to load, beside it.
            from metalayer.assets.headless import clear_up, dagster_instance
            from metalayer.assets.resources import open_warehouse
            from metalayer.services.activity import Activity
            from metalayer.services.runs import close_lost_runs

            warehouse = stack.enter_context(open_warehouse(self.settings, self._say))
            instance = stack.enter_context(dagster_instance(self.settings, server.dagster_url))
            close_lost_runs(instance, launched=True)
            prepare()
            activity = Activity(warehouse.pool, instance)
            began = time.time()
            self._wait(code, lambda: _serves(sockets / "code"))
            for name, child in children.items():
                if name not in _WATCHERS:
                    child.start()
            self._wait(children["webserver"], self._answers)
            self._wait(children["daemon"], lambda: _beats(instance, began))
            if self._ending:
                return
            ready()
            # They load beside the first work, and not beside what somebody waits for.
            for name in _WATCHERS & children.keys():
                children[name].start()
            news = News(
                self.settings,
                server,
                activity.news,
                lambda: close_lost_runs(instance),
                lambda: clear_up(warehouse),
            )
            self._watch(
                code,
                list(children.values()),
                definitions,
                news,
                lambda: close_lost_runs(instance, launched=True),
            )

    def _beside(
        self, option: str, port: int | None, usual: int, taken: Mapping[int, str]
    ) -> Address:
        """Where something else is served: not where what does not listen yet will.

        Args:
            option: Where another port is chosen.
            port: The one that is wanted; 0 takes a free one, None the usual, or a free one.
            taken: Ports that are spoken for, and whose they are.
        """
        host = self.address.host
        if port:
            if port in taken:
                raise UsageError(
                    f"Port {port} is {taken[port]}", f"Choose another with `{option} {port + 1}`."
                )
            return free_address(host, port, option)
        if port is None and usual not in taken:
            with contextlib.suppress(UsageError):
                return free_address(host, usual)
        while True:
            found = free_address(host, 0)
            if found.port not in taken:
                return found

    def _children(self, server: WarehouseServer, code: Path) -> dict[str, Child]:
        python = sys.executable
        logs = self.settings.home / "logs"
        self.settings.dagster_home.mkdir(parents=True, exist_ok=True)
        workspace = self.settings.dagster_home / "workspace.yaml"
        location = {"socket": str(code), "location_name": "metalayer"}
        log_format = ["--log-format", "json"] if self.settings.log_format == "json" else []
        # JSON is YAML.
        workspace.write_text(json.dumps({"load_from": [{"grpc_server": location}]}))
        commands = {
            "code server": [
                *("-m", "metalayer.services.code_server"),
                *("api", "grpc", "--socket", str(code)),
                *("--module-name", "metalayer.definitions", "--attribute", "defs"),
                *("--location-name", "metalayer", "--log-level", "warning", *log_format),
            ],
            "webserver": [
                *("-m", "dagster_webserver", "--workspace", str(workspace)),
                *("--host", self.address.host, "--port", str(self.address.port)),
                *("--dagster-log-level", "warning", "--suppress-warnings", *log_format),
                *(["--read-only"] if self._read_only else []),
            ],
            "daemon": [
                *("-m", "metalayer.services.daemon", "run", "--workspace", str(workspace)),
                *("--log-level", "warning", *log_format),
            ],
            "metrics": [
                *("-m", "metalayer", "metrics"),
                *("--host", self.metrics.host, "--port", str(self.metrics.port)),
            ],
            "quality": [
                *("-m", "metalayer", "quality"),
                *("--host", self.quality.host, "--port", str(self.quality.port)),
            ],
        }
        if self.settings.alert_urls is not None:
            commands["alerts"] = ["-m", "metalayer", "alerts", "--watch"]
        if self.settings.backup_url is not None:
            commands["backup"] = ["-m", "metalayer", "backup", "--watch"]
        environment = {
            **os.environ,
            **dagster_environment(self.settings, server.dagster_url),
            f"{ENV_PREFIX}HOME": str(self.settings.home),
            f"{ENV_PREFIX}LANDING": str(self.settings.landing),
            "PYTHONUNBUFFERED": "1",
        }
        return {
            name: Child(name, [python, *words], environment, logs / f"{name.replace(' ', '-')}.log")
            for name, words in commands.items()
        }

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note that the end is wanted; what is being started then is ended in order."""

        def end(_number: int, _frame: FrameType | None) -> None:
            self._ending = True

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, end) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self, child: Child, is_so: Callable[[], bool]) -> None:
        """Wait for a child to be ready.

        Raises:
            WarehouseError: when it ends, or takes too long.
        """
        wait_until(lambda: self._ending or child.exit_code is not None or is_so(), _START_SECONDS)
        if self._ending:
            return
        if child.exit_code is not None:
            raise WarehouseError(
                f"The {child.name} ended as it started: {child.last_words}",
                f"Its log is {child.log}.",
            )
        if not is_so():
            raise WarehouseError(
                f"The {child.name} did not get ready in {_START_SECONDS:.0f} seconds",
                f"Its log is {child.log}.",
            )

    def _answers(self) -> bool:
        """Whether the web interface answers, asked directly, whatever proxy the user has."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.address.local_url}/server_info", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def _watch(
        self,
        code: Child,
        others: list[Child],
        definitions: DefinitionFiles,
        news: News,
        close_runs: Callable[[], None],
    ) -> None:
        """Keep everything running, and say what goes on, until the end is wanted.

        Here nothing waits for PostgreSQL, so that a signal ends the platform whatever it does.
        """
        news.start()
        while not self._ending:
            time.sleep(0.2)
            for child in (code, *others):
                if child.exit_code is not None:
                    if child.name in _WATCHERS:
                        self._restart_watcher(child)
                        continue
                    self._restart(child)
                    if child is code:
                        # Its runs went with it.
                        news.before_next(close_runs)
                child.rotate_log()
            if definitions.have_changed():
                self._say("contracts or SELECTs have changed: the code server is started anew")
                end_all([code], _PATIENCE_SECONDS)
                code.start()
                news.before_next(close_runs)
            for line in news.heard():
                self._say(line)

    def _say(self, line: str) -> None:
        """Tell it; where nobody listens any more the end is wanted, and comes in order."""
        try:
            self._tell(line)
        except (OSError, SystemExit):  # the latter is what rich makes of a closed pipe
            self._ending = True

    def _restart_watcher(self, child: Child) -> None:
        """Start again what only looks, after a while: the work goes on without it."""
        now, (least, most) = time.monotonic(), _WATCHER_SECONDS
        watcher = self._watchers.setdefault(child.name, _Watcher(began=now))
        if watcher.ended is None:
            # One that was well for longer than that is begun with anew.
            well = now - watcher.began > most
            watcher.wait = least if well else min(2 * watcher.wait, most)
            watcher.ended = now
            self._say(
                f"the {child.name} ended: {child.last_words}. {child.log} has the rest; tried again"
                f" in {watcher.wait:.0f} s"
            )
        elif now - watcher.ended >= watcher.wait:
            watcher.ended, watcher.began = None, now
            with contextlib.suppress(OSError):  # then it is seen to have ended, and tried again
                child.start()

    def _restart(self, child: Child) -> None:
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < _RESTARTS_WITHIN] + [now]
        if len(self._restarts) > _MOST_RESTARTS:
            raise WarehouseError(
                f"The {child.name} keeps ending: {child.last_words}", f"Its log is {child.log}."
            )
        self._say(f"the {child.name} ended (exit code {child.exit_code}); it is started again")
        # Whatever it had started goes with it.
        child.signal(signal.SIGKILL)
        child.start()

    def _end(self, children: list[Child]) -> None:
        self._has_begun_to_end = True
        self._say("ending")
        end_all(children, _PATIENCE_SECONDS)

    def _say_ended(self) -> None:
        if self._has_begun_to_end:
            self._say("ended")


@contextlib.contextmanager
def _private_folder() -> Iterator[str]:
    """A folder for sockets: short, as a socket's path may have 107 bytes only."""
    folder = tempfile.mkdtemp(prefix="metalayer-", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serves(path: Path) -> bool:
    """Whether the code server listens at its socket, which it does once all is loaded."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _beats(instance: Any, since: float) -> bool:
    """Whether the daemon has begun to look after sensors since then."""
    beat = instance.get_daemon_heartbeats().get("SENSOR")
    return beat is not None and beat.timestamp >= since
