"""The golden record: what Rank-K sends to models and writes for users, recorded once and compared on every test run.

`python -m tests.golden.record` writes the record; `python -m tests.golden.record --check` compares with it.
"""
