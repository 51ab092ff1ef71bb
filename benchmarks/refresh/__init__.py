"""What refreshing negatives costs and what it brings, beside sentence-transformers' way to do it."""
