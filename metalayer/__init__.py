"""MetaLayer: trusted tables in PostgreSQL from landed CSV exports.

>>> import metalayer
>>> metalayer.read("gold.fact_sales", months="2025-01..2025-03")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metalayer.reading import read

__all__ = ["read"]


def __getattr__(name: str) -> Any:
    # Reading pulls in pandas and Polars, which `metalayer --help` can do without.
    if name == "read":
        from metalayer.reading import read

        return read
    raise AttributeError(f"module 'metalayer' has no attribute {name!r}")
