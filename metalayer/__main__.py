"""`python -m metalayer` is the `metalayer` command."""

from metalayer.process import run_program


def run() -> None:
    """The `metalayer` command, as a process of its own."""
    run_program(_main)


def _main() -> int:
    from metalayer.cli import main

    return main()


if __name__ == "__main__":
    run()
