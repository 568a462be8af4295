"""The contenders in the order of their turns; the others are compared to the first."""

from benchmarks.contender import Contender
from benchmarks.contenders import dlt_dbt, duckdb, metalayer, pandas, psql, sqlmesh

CONTENDERS: dict[str, Contender] = {
    module.CONTENDER.name: module.CONTENDER
    for module in (metalayer, psql, dlt_dbt, sqlmesh, duckdb, pandas)
}
