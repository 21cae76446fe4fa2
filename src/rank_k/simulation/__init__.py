"""Run strategies on simulated judges, to plan a run before paying for calls."""
