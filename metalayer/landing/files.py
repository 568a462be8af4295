"""The landing zone as a folder: which files are there, which stand still, and how one gets in.

Does not belong here: what is in a file (`reader.py`) or what became of it (`ledger.py`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from metalayer.contracts.contract import SourceSpec
from metalayer.errors import LandingError, UsageError

#: A file is picked up when it has not changed for this long.
STILL_SECONDS = 1.0
#: Where withdrawn files go, inside the landing zone.
WITHDRAWN_FOLDER = ".withdrawn"
_UNFINISHED = (".part", ".tmp")


FileState = tuple[str, int, int]


@dataclass(frozen=True)
class LandedFile:
    """A file of a source that stands still in the landing zone.

    Attributes:
        path: Where it is.
        name: Path inside the landing zone with `/`, e.g. "erp/orders_2025-01.csv".
        source: The source whose pattern it matches.
        size, mtime_ns: As they were when it was found.
    """

    path: Path
    name: str
    source: SourceSpec
    size: int
    mtime_ns: int

    @property
    def state(self) -> FileState:
        """Differs when the file is another, or has changed."""
        return self.name, self.size, self.mtime_ns


@dataclass(frozen=True)
class Skipped:
    """A file in the landing zone that is left alone, and why."""

    name: str
    reason: str


def discover(
    landing: Path, sources: Iterable[SourceSpec], *, still_seconds: float = STILL_SECONDS
) -> tuple[list[LandedFile], list[Skipped]]:
    """Find the files to register, oldest first (by time of landing, then name).

    Waits at most `still_seconds` for files that have just changed.

    Returns:
        The files that match a source and stand still, and those left alone with the reason.
    """
    sources = list(sources)
    found, skipped = _listing(landing, sources)
    # A clock that runs ahead of ours is no reason to wait longer than once.
    youngest = max((time.time() - f.mtime_ns / 1e9 < still_seconds for f in found), default=False)
    if youngest:
        time.sleep(still_seconds)
        before = {f.name: (f.size, f.mtime_ns) for f in found}
        found, skipped = _listing(landing, sources)
        moving = [f for f in found if before.get(f.name) != (f.size, f.mtime_ns)]
        skipped += [Skipped(f.name, "it is still being written") for f in moving]
        found = [f for f in found if f not in moving]
    return sorted(found, key=lambda f: (f.mtime_ns, f.name)), skipped


def landed_paths(landing: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every file in the landing zone, also where nobody looks for exports.

    Those that were withdrawn are among them, and what has not been copied whole. No link is
    followed.
    """
    for folder, _, names in os.walk(landing):
        for name in sorted(names):
            path = Path(folder) / name
            # What is gone since it was listed is no file any more.
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path.relative_to(landing).as_posix(), path


def match_source(name: str, sources: Iterable[SourceSpec]) -> SourceSpec | None:
    """The source whose pattern `name` (relative, with `/`) matches; the longest pattern wins."""
    plain = name.removesuffix(".gz")
    matching = [s for s in sources if fnmatchcase(plain, s.pattern)]
    return max(matching, key=lambda s: len(s.pattern), default=None)


def land(
    files: Sequence[Path], landing: Path, sources: Iterable[SourceSpec], source: str | None = None
) -> list[str]:
    """Copy exports into the landing zone; each appears there whole or not at all.

    Args:
        files: Paths of exports.
        source: The source they belong to; by default told by each file's name.

    Returns:
        Names inside the landing zone, in the order of `files`.

    Raises:
        UsageError: when a file matches no source, listing the sources, or is no file, or when two
            would get one name; then nothing is copied.
        LandingError: when a folder of the landing zone leads out of it, and then nothing is
            copied; or when a copy fails.
    """
    sources = list(sources)
    targets = [_target(path, sources, source) for path in files]
    for n, target in enumerate(targets):
        if target in targets[:n]:
            raise UsageError(
                f"{files[targets.index(target)]} and {files[n]} would both become {target}",
                "Rename one of them, or land them one after the other if the later replaces it",
            )
    for target in targets:
        refuse_leaving(landing, target)
    for path, target in zip(files, targets, strict=True):
        destination = landing / target
        aside = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.part")
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            # The landing time is the file's time: what lands later is newer.
            shutil.copyfile(path, aside)
            aside.replace(destination)
        except OSError as error:
            raise LandingError(
                f"{path} cannot be copied to {destination}: {error.strerror}",
                "Check the folder's permissions and free space",
            ) from error
        finally:
            aside.unlink(missing_ok=True)
    return targets


def refuse_leaving(landing: Path, name: str) -> None:
    """Refuse to write where a link, or `..`, leads out of the landing zone.

    Args:
        name: Where the file is to go, inside the landing zone.

    Raises:
        LandingError: naming the folder.
    """
    folder = (landing / name).parent
    if _leaves(folder, landing):
        raise LandingError(
            f"{folder} leads out of the landing zone, to {folder.resolve()}; nothing was written",
            "Put a folder in place of the link",
        )


def _target(path: Path, sources: list[SourceSpec], name: str | None) -> str:
    listing = "; ".join(f"{s.name} ({s.pattern})" for s in sources)
    if not path.is_file():
        raise UsageError(f"{path} is no file", "Name the export to land")
    chosen = [s for s in sources if s.name == name] if name else sources
    if not chosen:
        raise UsageError(f"There is no source '{name}'", f"Sources are {listing}")
    candidates = [f"{s.pattern.rpartition('/')[0]}/{path.name}" for s in chosen]
    matching = [(c, s) for c in candidates if (s := match_source(c, chosen)) is not None]
    if matching:
        return max(matching, key=lambda found: len(found[1].pattern))[0]
    if name:
        # Told its source, a file of another name is landed under one that matches.
        unpacked = path.name.removesuffix(".gz")
        packed = path.name.removeprefix(unpacked)
        return chosen[0].pattern.replace("*", f"_{Path(unpacked).stem}") + packed
    raise UsageError(
        f"{path.name} matches no source",
        f"Rename it or say which with --source. Sources are {listing}",
    )


def _listing(landing: Path, sources: list[SourceSpec]) -> tuple[list[LandedFile], list[Skipped]]:
    found: list[LandedFile] = []
    skipped: list[Skipped] = []
    if not landing.is_dir():
        return found, skipped
    for folder in sorted({s.pattern.rpartition("/")[0] for s in sources}):
        directory = landing / folder
        if not directory.is_dir():
            continue
        if _leaves(directory, landing):
            skipped.append(Skipped(folder, "it is a link that leads out of the landing zone"))
            continue
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.endswith(_UNFINISHED):
                    continue
                name = str(PurePosixPath(folder) / entry.name)
                source = match_source(name, sources)
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # gone since it was listed
                if stat.S_ISDIR(info.st_mode) and source is None:
                    continue  # an archive, say
                reason = _unfit(name, info.st_mode)
                if reason or source is None:
                    shown = name.encode(errors="surrogateescape").decode(errors="replace")
                    skipped.append(Skipped(shown, reason or "it matches no source"))
                else:
                    path = Path(entry.path)
                    found.append(LandedFile(path, name, source, info.st_size, info.st_mtime_ns))
    return found, sorted(skipped, key=lambda s: s.name)


def _unfit(name: str, mode: int) -> str | None:
    if stat.S_ISLNK(mode):
        return "it is a symbolic link; copy the file itself"
    if stat.S_ISDIR(mode):
        return "it is a folder"
    if not stat.S_ISREG(mode):
        return "it is no regular file"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    return None


def _leaves(directory: Path, landing: Path) -> bool:
    """Whether a folder of the landing zone is a link that leads out of it."""
    return not directory.resolve().is_relative_to(landing.resolve())
