"""Small passage scorers for the embedded default: MiniLM as GGUF, training data, and a cross-encoder."""
