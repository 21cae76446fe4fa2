"""Rank-K inside other people's frameworks: one small class each, whose module alone imports the framework.

Every class is made of a `Reranker`, or of what makes one: `RankKCompressor("hltcoe/Rank-K-32B", server="http://...")`.
The reranker is their attribute `reranker`; `reranker.close()` frees what it holds.
"""
