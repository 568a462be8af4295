"""Structured logs: what was done, a line each, with run, table, month and file.

    logging.getLogger("metalayer...") --> writing.py --> file.py: <home>/logs/metalayer.jsonl
                                                     --> stderr of services
    the file --> reading.py --> `metalayer logs`

Modules log through the standard library, with fields as `extra`; structlog adds the context (run,
table) and renders. Nothing personal and no value of a row belongs in a log: counts, names of files
and columns, first lines of problems do.
"""
