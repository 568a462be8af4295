"""Where logs go, and what their lines say: set up once a process has work to tell of.

Importing structlog takes a third of a second, so it is imported where logs are set up, and not by
commands that only read. Until then loggers are the standard library's own, and say warnings only.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from metalayer.logs.file import LogFile
from metalayer.settings import Settings

#: All loggers of ours are below this one.
ROOT = logging.getLogger("metalayer")
#: First on a line, in this order; then the rest as it comes.
_FIRST = ("timestamp", "level", "event", "command", "run", "table", "month", "file", "delivery")
#: What Dagster's own records carry along. Its events are in its storage.
_OF_DAGSTER = ("dagster_meta", "dagster_event", "dagster_event_batch_metadata")


def log_to_file(settings: Settings) -> None:
    """Append what this process does from now on to the home's log."""
    for handler in _handlers(LogFile):
        if handler.path == settings.log_file:
            return
        ROOT.removeHandler(handler)
        handler.close()
    _add(_rendering(LogFile(settings.log_file), is_json=True))


def log_to_stderr(settings: Settings) -> None:
    """Log to stderr, as services do: for people, or as JSON (METALAYER_LOG_FORMAT)."""
    if not _handlers(_Stderr):
        _add(stderr_handler(is_json=settings.log_format == "json"))


def stderr_handler(*, is_json: bool) -> logging.Handler:
    """Writes lines to stderr."""
    return _rendering(_Stderr(), is_json=is_json)


@contextlib.contextmanager
def telling(**fields: Any) -> Iterator[None]:
    """Have every line of the block say these fields as well, also in threads that it starts.

    Such threads need the context: `contextvars.copy_context().run`.
    """
    if "structlog" not in sys.modules:
        yield  # nobody listens
        return
    from structlog.contextvars import bind_contextvars, get_contextvars, unbind_contextvars

    before = {name: value for name, value in get_contextvars().items() if name in fields}
    bind_contextvars(**fields)
    try:
        yield
    finally:
        # Not by tokens: what a generator binds may be taken back in another context.
        unbind_contextvars(*fields)
        bind_contextvars(**before)


class _Stderr(logging.StreamHandler[Any]):
    """The stderr of a service."""


def _handlers(of_type: type[Any]) -> list[Any]:
    return [handler for handler in ROOT.handlers if isinstance(handler, of_type)]


def _add(handler: logging.Handler) -> None:
    ROOT.addHandler(handler)
    ROOT.setLevel(logging.INFO)


def _rendering(handler: logging.Handler, *, is_json: bool) -> logging.Handler:
    import structlog

    renderers: list[Any] = [_printable, structlog.dev.ConsoleRenderer(colors=False)]
    if is_json:
        renderers = [structlog.processors.JSONRenderer(ensure_ascii=False, default=str)]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.ExtraAdder(),
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _completed,
                *renderers,
            ],
        )
    )
    return handler


def _completed(
    _logger: Any, _method: str, fields: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """The fields in order, with the command, and without a traceback, whose values may be a row's.

    A processor of structlog's.
    """
    of_dagster = fields.get("dagster_meta") or {}
    for name in _OF_DAGSTER:
        fields.pop(name, None)
    if of_dagster.get("run_id"):
        fields.setdefault("run", of_dagster["run_id"])
    raised = fields.pop("exc_info", None)
    if raised:
        fields["error"] = raised[0].__name__
    fields["command"] = _command()
    return {name: fields.pop(name) for name in _FIRST if name in fields} | dict(fields)


def _printable(
    _logger: Any, _method: str, fields: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """The event on one line, as names of files may be anything; fields are so by themselves.

    A processor of structlog's.
    """
    from metalayer.console import shown

    fields["event"] = shown(fields["event"])
    return fields


def _command() -> str:
    """What this process is: "build" of `metalayer build`, "code_server" of a service's module."""
    program = Path(sys.argv[0])
    if "metalayer" in (program.name, program.parent.name) and len(sys.argv) > 1:
        return sys.argv[1]
    return program.stem
