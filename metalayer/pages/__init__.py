"""MetaLayer's own web pages, beside Dagster's: what they look like, and how they are served.

    sight.py    what is asked of the warehouse, once for all who look
    quality.py  the quality page

Does not belong here: what is measured (`metalayer.operations`).
"""

#: Where the quality page is served.
QUALITY_PORT = 3200
