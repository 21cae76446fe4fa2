"""Distillation: from a teacher's reasoning to a student that reranks. The steps, in the order of the data flow:

sample    first-stage runs -> candidate sets (see `candidate_sets`)
trace     candidate sets -> the journal, with a teacher's reasoning and rankings, or with relevance labels
select    the journal -> training rows, each with its provenance
train     training rows and a recipe -> a trained student (`rewards` is for reinforcement learning afterwards)
export    a trained student -> a GGUF file with its settings, or merged weights
"""
