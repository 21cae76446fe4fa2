"""Integrations of Rank-K into other frameworks: one class per framework, in a module that imports the framework.

Each class takes a `Reranker`, or the arguments for a new one: `RankKCompressor("hltcoe/Rank-K-32B", server="http://...")`.
Its attribute `reranker` is the reranker; `reranker.close()` closes connections and stops the embedded model.
"""
