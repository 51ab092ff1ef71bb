"""ance-fast search"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ance_fast.cli.inputs import refuse_missing_data, refuse_missing_folder, refuse_missing_model, refuse_unknown_preset
from ance_fast.cli.options import DocumentSeparator, TextPreset
from ance_fast.cli.output import print_json, print_stages
from ance_fast.errors import ConfigError

if TYPE_CHECKING:
    from ance_fast.data import Dataset


@dataclass(frozen=True)
class Collection:
    """What a search needs: encoder, index, and (for showing text) the token store."""

    encoder: Any
    index: Any
    store: Any | None

    def search(self, query: str, k: int, params: dict[str, int] | None = None) -> list[dict[str, Any]]:
        """The k best passages of a query: rank, id, score and, where texts were kept, title and text."""
        found = self.index.search_documents(self.encoder.encode_query(query), k, params=params)
        ids, scores = found.ids[0], found.scores[0].tolist()
        rows = [-1] * len(ids) if self.store is None else self.store.corpus.positions(ids).tolist()
        hits = []
        for rank, (document, score, row) in enumerate(zip(ids, scores, rows, strict=False), 1):
            hit: dict[str, Any] = {"rank": rank, "id": document, "score": score}
            if self.store is not None and row >= 0:
                shown = self.store.corpus.document(row)
                hit |= {"title": shown.title, "text": shown.text}
            hits.append(hit)
        return hits

    def answer(self, data: str, split: str | None, output: Path, k: int, params: dict[str, int]) -> dict[str, Any]:
        """Search for every query of a data set, write the run, and say how long each stage took."""
        from ance_fast.data import TokenStore, write_run
        from ance_fast.encoding import StageTimes, encode_matrix
        from ance_fast.encoding.budget import default_budget

        times, tower = StageTimes(), self.encoder.for_queries
        with times.running():
            dataset = read_queries(data, split)
            queries = list(dataset.queries)
            with times.host("tokenise"):
                tokens = TokenStore.of_queries(
                    dataset,
                    queries,
                    tower.tokenizer,
                    max_length=tower.max_query_length,
                    prompt=tower.query_prompt,
                )
            encoded = encode_matrix(tower, tokens, batch_tokens=default_budget(tower.device), times=times)
            with times.host("search"):
                found = self.index.search_documents(encoded, k, params=params)
            with times.host("write"):
                write_run(output, found.to_run(queries), output.stem)
        summary = {name: value for name, value in times.summary().items() if not name.startswith("passages")}
        rate = {"queries": len(queries), "queries_per_s": len(queries) / max(times.wall, 1e-9)}
        return {"run": str(output), "k": k, **rate, **summary}


def read_queries(data: str, split: str | None) -> Dataset:
    """A data set, the rows of a file that holds nothing else as its queries. Raises `DataError`."""
    from ance_fast.data import load_dataset

    dataset = load_dataset(data, split=split)
    if dataset.queries:
        return dataset
    return replace(dataset, queries={document.id: document.full_text for document in dataset.corpus})


def parse_params(text: str | None) -> dict[str, int]:
    """ "nprobe=64,..." as a dict. Raises `ConfigError`."""
    chosen: dict[str, int] = {}
    for part in (text or "").split(",") if text else ():
        name, _, value = part.partition("=")
        if not value.strip().isdecimal():
            raise ConfigError(f"--params {text!r}: expected name=number, such as nprobe=64")
        chosen[name.strip()] = int(value)
    return chosen


def search(
    run: Annotated[Path, typer.Argument(help="Run folder of `ance-fast train` or `demo`, or an index folder.")],
    query: Annotated[str | None, typer.Argument(help="The query; asked for when left out.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Encoder, when RUN is an index folder.")] = None,
    store: Annotated[Path | None, typer.Option(help="Token store with texts, when RUN is an index folder.")] = None,
    k: Annotated[int | None, typer.Option("-k", help="Passages a query (default: 5; 100 for --queries).")] = None,
    queries: Annotated[
        str | None, typer.Option(help="Answer all of these instead: beir:DIR, tsv:FILE, jsonl:FILE, -, a path.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which of the data set's queries (default: test or dev).")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="TREC run to write, with --queries.")] = None,
    params: Annotated[
        str | None, typer.Option(help="Parameters of an approximate index: nprobe=64 or efSearch=200.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    document_separator: DocumentSeparator = None,
    text_preset: TextPreset = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document a query.")] = False,
) -> None:
    """Search passages by meaning: one query, one after the other as they are typed, or a file of them into a run.

    Example: ance-fast search demo-run/ance "Dutch painter of sunflowers"

    Example: ance-fast search scifact.index -m intfloat/e5-small-v2 --queries beir:scifact -o scifact.trec
    """
    if k is not None and k < 1:
        raise ConfigError(f"-k {k}: ask for at least 1 passage")
    if (queries is None) != (output is None) or (queries is not None and query is not None):
        raise ConfigError("--queries DATA and --output RUN go together, without a query on the command line")
    chosen = parse_params(params)
    refuse_missing_folder(run, store)
    refuse_missing_model(model)
    refuse_unknown_preset(text_preset)
    refuse_missing_data(queries)
    collection = open_collection(run, model, store, device, text_preset)
    if document_separator is not None:
        collection.index.set_documents(document_separator)
    if queries is not None and output is not None:
        result = collection.answer(queries, split, output, k or 100, chosen)
        if json:
            print_json(result)
        else:
            print(f"{output}: {result['queries']:,} queries, {k or 100} passages each")
            print_stages(result, "queries")
        return
    for text in [query] if query is not None else _typed():
        started = time.perf_counter()
        hits = collection.search(text, k or 5, chosen)
        milliseconds = 1000 * (time.perf_counter() - started)
        if json:
            print_json({"query": text, "milliseconds": milliseconds, "hits": hits})
        else:
            _show(text, hits, milliseconds, len(collection.index))


def open_collection(
    run: Path, model: str | None, store: Path | None, device: str = "auto", text_preset: str | None = None
) -> Collection:
    """Load encoder, index and texts; refuses an index of another encoder or text preset (`ArtifactError`)."""
    whole = (run / "index").is_dir() and (run / "final").is_dir()
    if not whole and model is None:
        raise ConfigError(f"{run}: not the folder of a finished run; for an index folder say --model CHECKPOINT")
    from ance_fast.data import TokenStore
    from ance_fast.index import Index
    from ance_fast.models import Encoder

    encoder = Encoder.load(model or str(run / "final"), device=device, dtype="float32", text_preset=text_preset)
    place = run / "index" if whole else run
    index = Index.load(place, fingerprint=encoder.fingerprint(), tokenizer=encoder.tokenizer)
    texts = store or (run / "passages" if whole else None)
    return Collection(encoder, index, TokenStore.open(texts, verify=False) if texts is not None else None)


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
    """The part of a long text around the first word of the query, whole words and at most `width` characters."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    match = re.search(pattern, text) if pattern else None
    start = max(0, min(match.start() - width // 3, len(text) - width)) if match else 0
    stop = start + width
    # A word that is longer than a sixth of the whole is cut: some languages put no blanks between theirs.
    if start:
        blank = text.find(" ", start - 1, start + width // 6)
        start = start if blank < 0 else blank + 1
    if stop < len(text):
        blank = text.rfind(" ", stop - width // 6, stop + 1)
        stop = stop if blank < 0 else blank
    return "…" * (start > 0) + text[start:stop] + "…" * (stop < len(text))
