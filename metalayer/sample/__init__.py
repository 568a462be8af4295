"""Made-up exports of the CRM and the ERP, at any size, deterministic, with real-life dirt.

Behind `metalayer generate`, the committed sample and the tests. `generate` is the one public face:

    draws.py     hashes of (seed, name, row) that stand in for random numbers
    words.py     the word lists: names, cities, regions, states of an order
    calendar.py  the months of a run, their seasons and their days as text
    crm.py       crm/customers and crm/crm_customers
    erp.py       erp/orders and erp/erp_sales
    dirt.py      what can be wrong with a row
    files.py     what can be wrong with a file, and the writing of files
    generate.py  puts them together

What does not belong here: reading or judging data. Nothing in MetaLayer imports this package except
the command line, and this package imports nothing of MetaLayer except its exceptions.
"""

from metalayer.sample.generate import Generated, generate

__all__ = ["Generated", "generate"]
