"""From files to rows: discovery, fingerprints, CSV reading, the ledger of deliveries.

What belongs here ends where a bronze month is filled. Typing and cleaning are SQL's (`sql/silver`);
tables and partitions are `metalayer.warehouse`'s.
"""
