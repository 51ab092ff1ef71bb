"""ance-fast bm25"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ance_fast.cli.output import print_json, print_table


def bm25(
    data: Annotated[str, typer.Argument(help="Data set: beir:DIR, msmarco:DIR, or a path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="TREC run to write.")],
    split: Annotated[str, typer.Option(help="Queries to rank for.")] = "test",
    k: Annotated[int, typer.Option("-k", min=1, help="Passages a query.")] = 100,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Rank passages by BM25 (Lucene variant, k1 0.9, b 0.4): the baseline to beat.

    Example: ance-fast bm25 beir:scifact -o bm25.trec
    """
    import ance_fast
    from ance_fast.data import load_dataset, write_run

    dataset = load_dataset(data, split=split)
    documents = list(dataset.corpus)
    index = ance_fast.Bm25.build(
        (document.full_text for document in documents), [document.id for document in documents]
    )
    run = index.search(list(dataset.queries.values()), k).to_run(list(dataset.queries))
    write_run(output, run, "bm25")
    result = dict(ance_fast.evaluate(run, dataset.qrels))
    if json:
        print_json({"run": str(output), **result})
    else:
        print_table(list(result), [list(result.values())], title=str(output))
