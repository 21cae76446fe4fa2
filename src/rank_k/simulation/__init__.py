"""Run strategies on simulated models, to plan a run before paying for calls."""
