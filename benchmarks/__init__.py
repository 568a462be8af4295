"""MetaLayer beside its peers: the same exports, the same tables, measured in turn in one run.

`python -m benchmarks` is the command; what it measures, and how, is in docs/performance.md.

    __main__.py      the command: the rounds, one contender after the other
    exports.py       the generated files that all contenders read
    contender.py     what a contender is, and what one run of it is given
    contenders/      the contenders, one module each
    programs/        what runs in a contender's own process and knows nothing of MetaLayer
    requirements/    pinned dependencies of contenders that need an environment of their own
    environments.py  makes those environments
    selects.py       MetaLayer's SELECTs, as a peer would write them
    measure.py       seconds and memory of a process and its children
    totals.py        what the gold tables hold, to compare contenders by
    report.py        the table, the JSON file, the plot and the page

What does not belong here: anything that MetaLayer needs to run, and tuning of MetaLayer that its
users do not have.
"""
