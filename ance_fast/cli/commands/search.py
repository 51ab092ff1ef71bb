"""ance-fast search"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ance_fast.cli.output import print_json
from ance_fast.errors import ArtifactError, ConfigError


@dataclass(frozen=True)
class Collection:
    """What a search needs: encoder, index, and (for showing text) the token store."""

    encoder: Any
    index: Any
    store: Any | None

    def search(self, query: str, k: int) -> list[dict[str, Any]]:
        """The k best passages of a query: rank, id, score and, where texts were kept, title and text."""
        found = self.index.search(self.encoder.encode_query(query), k)
        ids, scores = found.ids[0], found.scores[0].tolist()
        rows = [-1] * len(ids) if self.store is None else self.store.positions(ids).tolist()
        hits = []
        for rank, (document, score, row) in enumerate(zip(ids, scores, rows, strict=False), 1):
            hit: dict[str, Any] = {"rank": rank, "id": document, "score": score}
            if self.store is not None and row >= 0:
                shown = self.store.document(row)
                hit |= {"title": shown.title, "text": shown.text}
            hits.append(hit)
        return hits


def search(
    run: Annotated[Path, typer.Argument(help="Run folder of `ance-fast train` or `demo`, or an index folder.")],
    query: Annotated[str | None, typer.Argument(help="The query; asked for when left out.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Encoder, when RUN is an index folder.")] = None,
    store: Annotated[Path | None, typer.Option(help="Token store with texts, when RUN is an index folder.")] = None,
    k: Annotated[int, typer.Option("-k", help="Passages to show.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON document a query.")] = False,
) -> None:
    """Search passages by meaning; without a query, asks for one after the other.

    Example: ance-fast search demo-run/ance "Dutch painter of sunflowers"
    """
    if k < 1:
        raise ConfigError(f"-k {k}: ask for at least 1 passage")
    collection = open_collection(run, model, store, device)
    for text in [query] if query is not None else _typed():
        started = time.perf_counter()
        hits = collection.search(text, k)
        milliseconds = 1000 * (time.perf_counter() - started)
        if json:
            print_json({"query": text, "milliseconds": milliseconds, "hits": hits})
        else:
            _show(text, hits, milliseconds, len(collection.index))


def open_collection(run: Path, model: str | None, store: Path | None, device: str = "auto") -> Collection:
    """Load encoder, index and texts; refuses an index made by another encoder (`ArtifactError`)."""
    from ance_fast.data import TokenStore
    from ance_fast.index import Index
    from ance_fast.models import Encoder

    whole = (run / "index").is_dir() and (run / "final").is_dir()
    if not whole and model is None:
        if not run.is_dir():
            raise ArtifactError(f"{run}: no such folder")
        raise ConfigError(f"{run}: not the folder of a finished run; for an index folder say --model CHECKPOINT")
    encoder = Encoder.load(model or str(run / "final"), device=device, dtype="float32")
    index = Index.load(run / "index" if whole else run, fingerprint=encoder.fingerprint())
    place = store or (run / "passages" if whole else None)
    return Collection(encoder, index, TokenStore.open(place, verify=False) if place is not None else None)


def _typed() -> Iterator[str]:
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            print("query> ", end="", flush=True, file=sys.stderr)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _show(query: str, hits: list[dict[str, Any]], milliseconds: float, passages: int) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(f"[dim]{passages:,} passages, {milliseconds:.0f} ms[/dim]")
    words = [re.escape(word) for word in re.findall(r"\w{3,}", query)]
    pattern = rf"(?i)\b({'|'.join(words)})" if words else None
    for hit in hits:
        head = Text(f"{hit['rank']:>2}  {hit['score']:.4f}  ")
        head.append(hit["id"], style="cyan")
        if hit.get("title") and hit["title"] != hit["id"]:
            head.append(f"  {hit['title']}", style="bold")
        console.print(head)
        if hit.get("text"):
            body = Text(_excerpt(hit["text"], pattern))
            if pattern:
                body.highlight_regex(pattern, style="bold yellow")
            body.pad_left(4)
            console.print(body)


def _excerpt(text: str, pattern: str | None, width: int = 280) -> str:
    """The part of a long text around the first word of the query."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    match = re.search(pattern, text) if pattern else None
    start = max(0, min(match.start() - width // 3, len(text) - width)) if match else 0
    return ("…" if start else "") + text[start : start + width] + ("…" if start + width < len(text) else "")
