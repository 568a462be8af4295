"""What happens by itself: files are taken in, tables follow, lateness is noticed, months turn.

    landing.py      a sensor takes in what lands
    arrivals.py     what the UI shows of it
    conditions.py   when a table's month is to be built
    following.py    a sensor that asks for what the conditions say, a run for a range of months
    freshness.py    what is late
    jobs.py         what a person or a schedule starts

Does not belong here: what a build does (`metalayer.assets`), or which processes run all this
(`metalayer.services`).
"""
