"""The records every reader yields: documents, queries and training triples, ids first."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """One passage of a corpus; `title` is empty where the format has none."""

    id: str
    text: str
    title: str = ""

    @property
    def full_text(self) -> str:
        """Title and text joined by a space: what BEIR's own baselines encode."""
        return f"{self.title} {self.text}".strip()


class Query(NamedTuple):
    """One query."""

    id: str
    text: str


class IdTriple(NamedTuple):
    """A training triple by id: MS MARCO's `qidpidtriples` files."""

    query_id: str
    positive_id: str
    negative_id: str


class TextTriple(NamedTuple):
    """A training triple by text: MS MARCO's `triples.train.small.tsv`."""

    query: str
    positive: str
    negative: str
