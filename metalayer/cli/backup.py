"""The commands `backup`, `backups`, `restore` and `drill`."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metalayer.cli.production import YesProd, confirm
from metalayer.console import Column, print_table, print_warning, say, say_next, shown, working
from metalayer.errors import MetaLayerError, UsageError
from metalayer.wording import counted, named

if TYPE_CHECKING:
    from metalayer.operations.backup import Backup, Tell
    from metalayer.operations.drill import Drill
    from metalayer.operations.restore import Restored
    from metalayer.operations.vault import Vault
    from metalayer.settings import Settings

_LOOK_SECONDS = 10.0
_AGAIN_SECONDS = 600.0
_DRILL_DAYS = 7
_NAMED = 5
_MB = 1e6


def backup(
    full: Annotated[
        bool, typer.Option("--full", help="All of it, though what changed would do.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Take backups and drills on schedule, until Ctrl-C."),
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Keep no log for backups any more; loads are faster.")
    ] = False,
    yes_prod: YesProd = False,
) -> None:
    """Take a backup to METALAYER_BACKUP_URL: the first whole, later ones of what changed.

    From the first on PostgreSQL's log is kept as well, so that any second can be brought back, and
    landed files with it. `up` does all this by itself where METALAYER_BACKUP_URL is set. Of a
    server of your own both databases are dumped.
    """
    from metalayer.logs.writing import log_to_stderr
    from metalayer.settings import Settings

    settings = Settings.load()
    if full + watch + stop > 1:
        raise UsageError("--full, --watch and --stop each go alone", "Choose one of them.")
    if stop:
        confirm(settings, "ends the log that any second is brought back from", yes=yes_prod)
        _stop(settings)
        return
    from metalayer.operations.vault import open_vault

    vault = open_vault(settings)
    if watch:
        log_to_stderr(settings)
        with contextlib.suppress(KeyboardInterrupt):
            _watch(settings, vault)
        return
    with working("Taking a backup") as tell:
        taken = _take(settings, vault, tell, full=full)
    landed = counted(len(taken.landed), "landed file")
    say(f"Backup {taken.id} ({taken.kind}): {taken.size / _MB:,.1f} MB, and {landed}.")
    if not vault.is_encrypted:
        print_warning(
            f"{vault.shown} is not encrypted, and the keys of encrypted columns are not in it: set "
            "METALAYER_BACKUP_KEY (`metalayer keys new` prints one), and keep it elsewhere"
        )
    say_next(("drill", "try a recovery"), ("backups", "what there is"))


def _take(settings: Settings, vault: Vault, tell: Tell, *, full: bool = False) -> Backup:
    from metalayer.operations.backup import take
    from metalayer.warehouse.archiving import begin_archiving
    from metalayer.warehouse.server import warehouse_server

    if settings.database_url is None:
        begin_archiving(settings.pgdata)
    with warehouse_server(settings, tell) as server:
        return take(settings, server, vault, tell, full=full)


def _stop(settings: Settings) -> None:
    from metalayer.warehouse.archiving import spool_of
    from metalayer.warehouse.postgres import Cluster

    spool = spool_of(settings.pgdata)
    if not spool.is_dir():
        say("PostgreSQL's log is not kept.")
        return
    if Cluster(settings.pgdata).is_running:
        # It would go on to archive, find no place, and keep all of its log.
        raise UsageError("PostgreSQL runs", "End `metalayer up` and other commands, and ask again.")
    if any(path.is_file() for path in spool.iterdir()):
        from metalayer.operations.archive import Archive
        from metalayer.operations.vault import open_vault

        Archive(settings, open_vault(settings)).ship()
    for path in spool.iterdir():
        path.unlink()
    spool.rmdir()
    say("PostgreSQL keeps no log for backups from its next start on. What is in the vault stays.")


def _watch(settings: Settings, vault: Vault) -> None:
    """Take away what there is to take, and take backups and drills when they are due."""
    from metalayer.operations.archive import Archive
    from metalayer.operations.backup_state import load_state

    archive = Archive(settings, vault)
    tried = {"backup": 0.0, "drill": 0.0}

    def is_due(what: str, at: str | None, after: timedelta) -> bool:
        since = datetime.now(UTC) - datetime.fromisoformat(at) if at else None
        is_due = since is None or since >= after
        if not is_due or (time.monotonic() - tried[what] < _AGAIN_SECONDS and tried[what]):
            return False
        tried[what] = time.monotonic()
        return True

    while True:
        try:
            archive.ship()
            state = load_state(settings)
            if is_due("backup", state.backup_at, timedelta(hours=settings.backup_hours)):
                taken = _take(settings, vault, lambda _: None)
                say(f"backup {taken.id} ({taken.kind}): {taken.size / _MB:,.1f} MB")
            elif state.backup_at and is_due("drill", state.drill_at, timedelta(days=_DRILL_DAYS)):
                say(_in_words(_drilled(settings, vault, lambda _: None)))
        except MetaLayerError as error:
            say(str(error), "yellow")
        except Exception as error:  # whatever it is, the next look is wanted
            say(f"{type(error).__name__}: {error}", "yellow")
        time.sleep(_LOOK_SECONDS)


def backups(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the backups in METALAYER_BACKUP_URL, and when a recovery was last tried."""
    from metalayer.operations.backup import backups as listed
    from metalayer.operations.backup_state import load_state
    from metalayer.operations.vault import open_vault
    from metalayer.settings import Settings

    settings = Settings.load()
    vault = open_vault(settings)
    found = listed(vault)[::-1]
    state = load_state(settings)
    if as_json:
        from metalayer.cli.formats import json_text

        told = [{**asdict(b), "landed": len(b.landed)} for b in found]
        sys.stdout.write(json_text({"backups": told, "state": asdict(state)}) + "\n")
        return
    if not found:
        say(f"There is no backup in {vault.shown} yet.")
        say_next(("backup", "takes one"))
        return
    print_table(
        [
            Column("backup"),
            Column("kind"),
            Column("ended (UTC)"),
            Column("MB", is_number=True),
            Column("landed files", is_number=True),
            Column("server", is_extra=True),
        ],
        [
            (
                b.id,
                b.kind,
                f"{b.ended:%Y-%m-%d %H:%M:%S}",
                f"{b.size / _MB:,.1f}",
                len(b.landed),
                b.system,
            )
            for b in found
        ],
    )
    if state.shipped_at and found[0].kind != "dump":
        at = datetime.fromisoformat(state.shipped_at)
        say(f"Any second since the first of them comes back, up to {at:%Y-%m-%d %H:%M} UTC.")
    if state.failure:
        print_warning(f"the last try failed: {shown(state.failure)}")
    if state.drill_at:
        verdict = shown(state.drill_failure) or f"well, in {state.drill_seconds:,.0f} s"
        say(f"Recovery was last tried at {state.drill_at[:16]}: {verdict}.")
    say_next(("restore --into DIR", "brings everything back"), ("drill", "tries it"))


def restore(
    into: Annotated[
        str,
        typer.Option("--into", metavar="DIR|URL", help="A new home, or an empty database."),
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TIME", help="The second to go to: 2025-07-01T10:30 (UTC)."),
    ] = None,
    wanted: Annotated[
        str | None, typer.Option("--backup", metavar="ID", help="Begin with this backup.")
    ] = None,
) -> None:
    """Bring everything back as it was at some second: a new home, checked, or an empty database.

    Files of the server are held against their sums, the rows of every published month against
    theirs. Nothing is written over. Whoever was erased since is erased again.
    """
    from metalayer.audit_log import parse_since
    from metalayer.operations.restore import hand_over
    from metalayer.operations.restore import restore as bring_back
    from metalayer.operations.vault import open_vault
    from metalayer.settings import Settings
    from metalayer.warehouse.acts import record_now

    settings = Settings.load()
    vault = open_vault(settings)
    instant = parse_since(to) if to else None
    is_url = "://" in into
    with contextlib.ExitStack() as stack:
        home = Path(into)
        if is_url:
            settings.home.mkdir(parents=True, exist_ok=True)
            home = stack.enter_context(_scratch(settings))
        tell = stack.enter_context(working("Restoring"))
        done = bring_back(settings, vault, home, tell, to=instant, wanted=wanted)
        _replay(done.settings, tell)
        last_act = f"{done.reached:%Y-%m-%d %H:%M:%S}" if done.reached else ""
        details = {"to": to, "last_act": last_act}
        record_now(done.settings, "restore", f"backup {done.backup.id}", details)
        if is_url:
            hand_over(done, into, tell)
    _print_restored(done, into, is_url=is_url)
    if done.wrong:
        raise typer.Exit(1)


@contextlib.contextmanager
def _scratch(settings: Settings):  # type: ignore[no-untyped-def]
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix=".restore-", dir=settings.home))
    folder.chmod(0o711)
    try:
        yield folder / "home"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replay(settings: Settings, tell: Tell) -> None:
    """Erase again whom a restored home has brought back."""
    from metalayer.operations.drill import brought_back
    from metalayer.warehouse.server import warehouse_server

    with warehouse_server(settings, tell) as server:
        if not brought_back(settings, server):
            return
        tell("erasing again whom it brought back")
        from metalayer.catalog import catalog
        from metalayer.cli import running
        from metalayer.governance.erasure import replay

        with running.platform(settings) as (warehouse, instance):
            replay(warehouse, instance, catalog(), tell)


def _print_restored(done: Restored, into: str, *, is_url: bool) -> None:
    from metalayer.settings import without_password

    where = without_password(into) if is_url else str(done.settings.home)
    reached = f"{done.reached:%Y-%m-%d %H:%M:%S} UTC" if done.reached else "nothing was done yet"
    say(f"Restored to {where} from backup {done.backup.id}; the last act in it: {reached}.")
    if done.is_end:
        print_warning("the log ends before the time that was asked for: it is the newest there is")
    say(f"{counted(done.months, 'published month')} as they were.")
    if done.unknown:
        say(f"{counted(done.unknown, 'month')} of other contracts could not be compared.")
    for month in done.wrong:
        print_warning(f"{month} does not have the rows that were published")
    if is_url:
        say("Landed files are not in a database: land them where that warehouse looks for them.")
        say_next(("roles apply", "makes roles and grants, which are no part of it"))
        return
    say(f"{counted(done.files, 'landed file')} lie there as they did.")
    if done.lacking:
        print_warning(f"no backup has these landed files: {named(done.lacking, _NAMED)}")
    if done.lacks_keys:
        print_warning(
            "the keys of encrypted columns are in no backup that is not encrypted: give them in "
            "METALAYER_ENCRYPTION_KEY, or copy encryption.keys there"
        )
    say(f"To use it: METALAYER_HOME={done.settings.home}")


def drill(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try a recovery: restore everything into a scratch home, compare it, and remove it.

    Says how much would have been lost, and how long it takes. `up` does so every week where
    METALAYER_BACKUP_URL is set; the outcome is in `backups` and in the metrics.
    """
    from metalayer.operations.vault import open_vault
    from metalayer.settings import Settings

    settings = Settings.load()
    vault = open_vault(settings)
    with working("Trying a recovery") as tell:
        done = _drilled(settings, vault, tell)
    if as_json:
        from metalayer.cli.formats import json_text

        told = {
            "backup": done.restored.backup.id,
            "seconds": round(done.seconds, 1),
            "recovery_point_seconds": round(done.point_seconds, 1),
            "months": done.restored.months,
            "files": done.restored.files,
            "erased_again": done.erased,
            "problem": done.problem,
        }
        sys.stdout.write(json_text(told) + "\n")
    else:
        say(_in_words(done))
    if done.problem:
        raise typer.Exit(1)


def _drilled(settings: Settings, vault: Vault, tell: Tell) -> Drill:
    from metalayer.operations.drill import drill as try_it

    return try_it(settings, vault, tell, _replay)


def _in_words(done: Drill) -> str:
    if done.problem:
        return f"The recovery failed: {done.problem}."
    erased = f", {counted(done.erased, 'person')} erased again" if done.erased else ""
    lost = (
        "nothing published would be lost"
        if not done.point_seconds
        else f"the last {done.point_seconds:,.0f} s would be lost"
    )
    return (
        f"Recovered in {done.seconds:,.0f} s from backup {done.restored.backup.id}: "
        f"{counted(done.restored.months, 'published month')} and "
        f"{counted(done.restored.files, 'landed file')} as they were{erased}; {lost}."
    )
