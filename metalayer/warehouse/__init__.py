"""PostgreSQL, knowing nothing of Dagster: server, pool, DDL, stage, audit, publish, versions."""
