"""One window in, one ranked window out."""
