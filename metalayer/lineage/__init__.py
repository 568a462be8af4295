"""What SQL says about itself: the tables a SELECT reads, over which months, where columns are from.

Does not belong here: running SQL (see `metalayer.warehouse`) or Dagster's view of the graph
(see `metalayer.assets`).
"""
