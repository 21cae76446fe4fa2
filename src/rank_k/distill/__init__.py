"""Distillation: train a small reranker (the student) on the reasoning of a large model (the teacher).

The steps, in the order of the data flow, with input and output:

sample    first-stage runs -> candidate sets (see `candidate_sets`)
trace     candidate sets -> a journal with the teacher's reasoning and rankings, or with relevance labels
select    the journal -> training rows, each with its provenance
train     training rows and a recipe -> a trained student
export    a trained student -> a GGUF file with its settings, or merged weights

`rewards` contains reward functions for reinforcement learning after `train`.
"""
