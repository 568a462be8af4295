"""Whether the flow of personal data has been found in order for exactly these tables before.

Following every column takes long, so a good verdict is remembered: an empty file under the home,
named by a fingerprint of all that was judged and of the code that judged. What was refused is
judged again each time. How it is judged is `flow.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from metalayer.contracts.contract import TableSpec
from metalayer.errors import MetaLayerError
from metalayer.lineage.select import Select

_CODE = Path(__file__).parents[1]
#: More than ever stand side by side; verdicts of earlier contracts are of no use.
_KEPT = 20


def refuse_unprotected(specs: Mapping[str, TableSpec], selects: Mapping[str, Select]) -> None:
    """Judge the tables, unless the same were judged before by the same code.

    Raises:
        ContractError: see `flow.refuse_unprotected_columns`.
    """
    known = _folder()
    found_good = known / fingerprint(specs, selects) if known is not None else None
    if found_good is not None:
        with suppress(OSError):
            if found_good.is_file():
                return
    # sqlglot's optimizer takes longer to import than a known verdict to look up.
    from metalayer.governance.flow import refuse_unprotected_columns

    refuse_unprotected_columns(specs, selects)
    if found_good is not None:
        _remember(found_good)


def fingerprint(specs: Mapping[str, TableSpec], selects: Mapping[str, Select]) -> str:
    """A name for everything that a verdict depends on."""
    said = [
        (
            name,
            spec.source.pattern if spec.source else None,
            [
                (c.name, c.type, c.pii, c.sensitivity, c.declassified, c.derived, c.sealed_type)
                for c in spec.columns
            ],
            sorted(spec.views.items()),
            selects[name].text if name in selects else None,
        )
        for name, spec in sorted(specs.items())
    ]
    return hashlib.sha256(f"{_code()} {said!r}".encode()).hexdigest()


@cache
def _code() -> str:
    files = [
        *sorted((_CODE / "governance").glob("*.py")),
        *sorted((_CODE / "lineage").glob("*.py")),
        _CODE / "contracts" / "classification.py",
    ]
    text = b"".join(path.read_bytes() for path in files)
    return f"{hashlib.sha256(text).hexdigest()} {version('sqlglot')}"


def _folder() -> Path | None:
    from metalayer.settings import Settings

    with suppress(MetaLayerError):
        return Settings.load().home / "verdicts"
    return None


def _remember(path: Path) -> None:
    """Keep the verdict where that is possible; a home that does not exist is not made for it."""
    with suppress(OSError):
        if path.parent.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            path.touch()
            by_age = sorted(path.parent.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
            for old in by_age[_KEPT:]:
                old.unlink(missing_ok=True)
