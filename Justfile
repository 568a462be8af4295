# For those who have `just`; everything goes through ./run, which needs only Python.

# List the targets
default:
    @just --list

# Build everything from the committed sample
demo *ARGS:
    ./run demo {{ARGS}}

# Run the whole test suite, or what pytest's arguments say
test *ARGS:
    ./run test {{ARGS}}

# Lint, format, types and SQL style, without changing anything
check:
    ./run check

# Mend what ruff and sqlfluff can mend themselves
fix:
    .venv/bin/ruff check --fix .
    .venv/bin/ruff format .
    .venv/bin/sqlfluff fix sql

# What a change in CI goes through
ci:
    .ci/run

# Write the lock files anew from pyproject.toml (needs uv)
lock:
    #!/usr/bin/env bash
    set -euo pipefail
    compile="uv pip compile pyproject.toml --group build --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet"
    $compile --output-file requirements.lock
    $compile --extra dev --constraints requirements.lock --output-file requirements-dev.lock
    for lock in requirements.lock requirements-dev.lock; do
        { echo '# Every dependency, for Linux and macOS, Python 3.11 to 3.14. Written by `just lock`.'; cat $lock; } > $lock.new
        mv $lock.new $lock
    done
    for asked in benchmarks/requirements/*.in; do
        lock=${asked%.in}.txt
        uv pip compile $asked --universal --python-version 3.11 --no-annotate --no-header --quiet --output-file $lock
        { echo '# A contender of the benchmarks, in an environment of its own. Written by `just lock`.'; cat $lock; } > $lock.new
        mv $lock.new $lock
    done

# Remove what ./run and the tools made; the state in .metalayer stays
clean:
    rm -rf .venv .run.lock .pytest_cache .mypy_cache .ruff_cache .hypothesis
