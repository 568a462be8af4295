"""pandas, the way such loads often begin: `read_csv` in chunks and `to_sql`, to bronze only.

It takes a sample of each source's rows, and the seconds of loading are extrapolated to all rows;
what the process takes to start counts once.
"""

from __future__ import annotations

import json
import sys

from benchmarks.contender import PROGRAMS, Contender, Run, Step
from benchmarks.selects import sources

_SAMPLE_ROWS = 50_000


def _prepare(run: Run) -> list[Step]:
    files = {table.name: [str(file) for file in run.exports.of(table)] for table in sources()}
    listed = run.write("exports.json", json.dumps(files))
    program = str(PROGRAMS / "load_pandas.py")
    command = [sys.executable, program, str(listed), run.server, str(_SAMPLE_ROWS)]
    return [Step(command)]


CONTENDER = Contender("pandas", "pandas to_sql", _prepare, None, _SAMPLE_ROWS)
