"""Rerank a run in several processes, on several machines, or with a batch API, and merge the results.

shards        divide the queries of a run among processes
merge         merge the runs and journals of all shards
batch_files   write requests to batch files, and read the responses
batch_server  submit batch files to a server, and fetch the results
ray           rerank a Ray dataset
"""
