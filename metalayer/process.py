"""How our processes begin and end, whatever they do in between.

What Python's garbage collector costs them, and how they leave. Does not belong here: what a command
or a service does, or its signals.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Callable
from typing import NoReturn

#: By itself Python looks for garbage at every 700 to 2,000 new objects. The import of Dagster and
#: Polars makes a million that stay; looking through them takes a sixth of the time.
_NEW_OBJECTS, _YOUNG_LOOKS, _OLD_LOOKS = 100_000, 20, 20


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run what a process is there for, and end the process with the code it returns.

    Threads, and all that is registered with `atexit` from here on, have their end. What is left out
    is Python's taking every module apart: half a second, in which extensions complain on the
    terminal about what others still hold.
    """
    collect_seldom()
    code: list[int] = []
    # What is registered first is called last.
    atexit.register(_leave, code)
    code.append(main())
    sys.exit(code[0])


def collect_seldom() -> None:
    """Have Python look for garbage less often: for programs that import much and keep it."""
    gc.set_threshold(_NEW_OBJECTS, _YOUNG_LOOKS, _OLD_LOOKS)


def _leave(code: list[int]) -> None:
    """End the process, unless it is an exception that ends it."""
    if code:
        for stream in (sys.stdout, sys.stderr):
            # A stream that was closed before the process began is None.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(code[0])
