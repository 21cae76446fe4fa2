"""Adapters that make Rank-K available in other frameworks. Each framework has its own module with one class.

Each class takes a `Reranker`, or the arguments for a new one: `RankKCompressor("hltcoe/Rank-K-32B", server="http://...")`.
The attribute `reranker` of each class contains it. `reranker.close()` closes connections and stops the embedded model.
"""
