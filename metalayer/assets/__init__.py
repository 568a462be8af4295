"""Dagster's view of the tables: assets, checks, partitions, metadata, and headless runs.

Everything here is derived from the catalog. How rows get into PostgreSQL is the business of
`metalayer.warehouse`.
"""
