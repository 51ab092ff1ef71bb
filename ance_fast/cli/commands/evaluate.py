"""ance-fast evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ance_fast.cli.output import print_json, print_table
from ance_fast.errors import ConfigError, DataError


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="TREC run files (qid Q0 docid rank score tag).")],
    qrels: Annotated[Path, typer.Option("--qrels", "-q", help="Judgements: TREC or BEIR qrels file.")],
    metrics: Annotated[str, typer.Option(help="ir-measures names, separated by commas.")] = "nDCG@10,RR@10,R@100",
    test: Annotated[str, typer.Option(help="Paired test against the first run: t, randomization, wilcoxon.")] = "t",
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Measure runs; with several, compare each with the first (paired, two-sided, on the first metric).

    Example: ance-fast evaluate ance.trec bm25.trec -q scifact/qrels/test.tsv
    """
    import ance_fast

    names = tuple(name.strip() for name in metrics.split(",") if name.strip())
    if not names:
        raise ConfigError("--metrics is empty; name at least one, such as nDCG@10")
    for run in (*runs, qrels):
        if not run.is_file():
            raise DataError(f"{run}: no such file")
    results = [ance_fast.evaluate(run, qrels, metrics=names) for run in runs]
    rows: list[dict[str, Any]] = []
    for run, result in zip(runs, results, strict=True):
        row: dict[str, Any] = {"run": str(run), "queries": result.num_queries, **dict(result)}
        if len(runs) > 1:
            same = result is results[0]
            row["p_value"] = (
                None if same else ance_fast.paired_significance(results[0], result, names[0], test=test).p_value
            )
        rows.append(row)
    if json:
        print_json(rows)
    else:
        columns = list(rows[0])
        print_table(columns, [[row[column] for column in columns] for row in rows])
