"""How a process of ours ends: with its code, all it wrote, and what waits for its end done."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import atexit, sys, threading, time
from metalayer.process import run_program

def late():
    time.sleep(0.3)
    print("a thread has ended")

class Kept:
    def __del__(self):
        sys.__stdout__.write("taken apart\\n")

kept = Kept()

def main():
    atexit.register(print, "what waited for the end")
    threading.Thread(target=late).start()
    print("x" * 100_000)
    {end}

run_program(main)
"""


def ended(end: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(end=end)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_process_ends_with_its_code_when_all_is_done() -> None:
    done = ended("return 3")
    assert done.returncode == 3
    # And nothing is taken apart.
    lines = ["x" * 100_000, "a thread has ended", "what waited for the end"]
    assert done.stdout.splitlines() == lines
    assert done.stderr == ""


def test_an_exception_ends_it_as_it_ends_any_program() -> None:
    assert ended("sys.exit(143)").returncode == 143
    done = ended("raise ValueError('a defect')")
    assert done.returncode == 1
    assert "a defect" in done.stderr
    assert "what waited for the end" in done.stdout


def test_the_process_of_a_run_has_all_imported_and_nothing_to_collect() -> None:
    code = (
        "import metalayer.services.forked, gc, sys\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000\n"
        "assert gc.get_threshold()[0] > 10_000\n"
        "assert {'metalayer.definitions', 'dagster._grpc.server'} <= set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
