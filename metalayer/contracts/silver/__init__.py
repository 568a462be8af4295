"""Contracts of the silver tables: what the CRM and the ERP delivered, typed and standardised.

One file a landed source, its `class Source:` saying which files. Nothing is combined or derived
from several sources here; that is gold.
"""

#: What the exports write where there is no value; a contract says for which columns it counts.
NO_VALUE = ("NULL", "N/A", "NA", "-")

#: Past these a quantity or an amount is a typing error, and sums of such would leave their type.
MOST_UNITS = 10**9
MOST_MONEY = 10**12
