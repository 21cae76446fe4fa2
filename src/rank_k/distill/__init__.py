"""From a teacher's reasoning to a student that reranks, one step a file, in the order in which data flows.

sample    first-stage runs -> candidate sets (see `candidate_sets`)
trace     candidate sets -> the journal: a teacher's reasoning and rankings, or labels alone
select    the journal -> rows to train on, each with its provenance
train     rows and a recipe -> a trained student (`rewards.py`: for those who go on by reinforcement)
export    a trained student -> GGUF with its settings, or merged weights
"""
