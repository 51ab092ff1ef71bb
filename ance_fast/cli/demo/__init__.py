"""The demonstration: ANCE beside its rivals on encyclopaedia text, on this machine, in minutes."""
