"""Strategies on simulated judges: plan before paying for calls."""
