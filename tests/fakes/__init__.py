"""Fake servers and models, one per file."""
