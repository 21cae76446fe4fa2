"""First-stage retrieval: BM25 and fusion of runs."""
