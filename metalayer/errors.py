"""The exceptions MetaLayer raises on purpose, in one tree.

    MetaLayerError                what a command prints without a traceback
    ├── UsageError                the command was called wrongly (exit code 2)
    ├── ConfigurationError        a setting, or the machine, does not fit
    ├── ContractError             a contract or its SELECT does not fit the others
    ├── LandingError              a landed file is refused
    ├── WarehouseError            PostgreSQL cannot be reached or refuses
    ├── CapacityError             memory, connections or room ran out; what is published stands
    │   └── DiskFullError         a disk has no room left
    └── BuildError                a month failed its audit, or a build could not end

Every message names the thing and the cause; `next_step` says what to do about it, and `kind` what
class of error it is, on which it depends whether trying again can help.
An error that is not in this tree is a defect of MetaLayer and keeps its traceback.
No handling of errors belongs here: the command line does that, once. What class an exception of
others is of, `metalayer.failure` says.
"""

from typing import ClassVar, Literal

#: transient: it may be gone in a moment, so it is tried again; data: files or rows are refused or
#: quarantined, and are refused again until they change; configuration: settings, rights, contracts
#: or SELECTs do not fit; capacity: room, memory or connections ran out; bug: nobody foresaw it.
Kind = Literal["transient", "data", "configuration", "capacity", "bug"]


class MetaLayerError(Exception):
    """An error whose text is meant for the user.

    Args:
        message: the thing and the cause, as one or more sentences; a closing full stop is optional.
        next_step: what the user does to mend it, as a sentence; empty when there is nothing to do.
        kind: of what class it is; by default what is usual for errors of its type.
    """

    exit_code: ClassVar[int] = 1
    usual_kind: ClassVar[Kind] = "configuration"

    def __init__(self, message: str, next_step: str = "", *, kind: Kind | None = None) -> None:
        super().__init__(message, next_step)
        self.message = message
        self.next_step = next_step
        self.kind: Kind = kind or self.usual_kind

    def __str__(self) -> str:
        if not self.next_step:
            return self.message
        # "No such file: x. Land it first", but never "What happened?. Do this".
        stop = "" if self.message.endswith((".", "!", "?", "\n")) else "."
        return f"{self.message}{stop} {self.next_step}"


class UsageError(MetaLayerError):
    """The command was called with arguments that make no sense together or do not exist."""

    exit_code: ClassVar[int] = 2


class ConfigurationError(MetaLayerError):
    """A setting has an impossible value, or the machine lacks something MetaLayer needs."""


class ContractError(MetaLayerError):
    """A contract is incomplete, or a SELECT and its contract disagree."""


class LandingError(MetaLayerError):
    """A landed file is refused as a whole."""

    usual_kind: ClassVar[Kind] = "data"


class WarehouseError(MetaLayerError):
    """PostgreSQL cannot be started or reached, or refuses what is asked of it."""


class CapacityError(MetaLayerError):
    """Something ran out. It says nothing against the files and rows that were in work."""

    usual_kind: ClassVar[Kind] = "capacity"


class DiskFullError(CapacityError):
    """A disk has no room left."""


class BuildError(MetaLayerError):
    """A table's month was not published."""

    usual_kind: ClassVar[Kind] = "data"
