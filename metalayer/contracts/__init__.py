"""WHAT each table is: one contract a file, in the folder of its layer.

Belongs here: the contracts of silver and gold, and in `contract.py` the vocabulary they are written
in. Does not belong here: how a table is made (that is its SELECT, the same stem under `sql/`), and
the contracts of bronze, which are derived from the silver tables they feed.
"""
