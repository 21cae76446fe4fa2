"""Rerank a run in several processes or on several machines, and put the results together.

shards  the part of a run's queries that one process reranks
merge   the runs and journals of all shards -> one run and one journal
"""
