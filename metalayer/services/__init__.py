"""The processes of a running platform: started, watched and ended by `metalayer up`.

    child.py        one process of ours: its log, its end, nothing left behind
    platform.py     PostgreSQL, code server, webserver and daemon as one
    code_server.py  Dagster's code server, whose runs start at once
    daemon.py       Dagster's daemon, which looks for backfills more often
    news.py         what is looked for beside them: news, a dead PostgreSQL, lost runs, old logs
    runs.py         runs that nobody works on any more
    activity.py     what goes on in it, as lines for a terminal

Does not belong here: what the daemon does (`metalayer.automation`).
"""
