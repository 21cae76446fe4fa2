"""Test collections by name, from BEIR folders, BRIGHT, ir_datasets and the demo."""
