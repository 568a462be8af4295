"""What contracts say about people, access and meaning, and what is derived from it.

Nothing here imports Dagster, and nothing is typed that a contract or a SELECT already says.
"""
