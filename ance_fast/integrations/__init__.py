"""Adapters to other libraries, one file an ecosystem; each is imported when it is used."""
