"""Contracts of the gold tables: dimensions, facts, and what is read off them.

Nothing here is fed from landed files; a gold table is made from silver and from other gold tables.
"""
