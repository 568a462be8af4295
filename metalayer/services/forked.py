"""What the process of a run has before it is forked: everything imported, nothing done.

It has no connection, and no threads but those that memory allocation and Polars keep asleep in the
background from their import on. What is here is there for good, so that no run looks through it for
garbage: pages that nobody writes to are shared by all.
"""

import gc

from metalayer.process import collect_seldom

gc.disable()
try:
    import dagster._cli.api
    import dagster._grpc.server  # noqa: F401 - where the process of a run begins

    from metalayer.definitions import settings
    from metalayer.services.json_lines import print_json

    if settings.log_format == "json":
        print_json()
finally:
    # The process goes on without what cannot be imported, and each run says why.
    gc.freeze()
    gc.enable()
    collect_seldom()
