"""ance-fast evaluate"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ance_fast.cli.inputs import refuse_missing_data, refuse_missing_files
from ance_fast.cli.output import print_json, print_table
from ance_fast.errors import ConfigError

if TYPE_CHECKING:
    from ance_fast.evaluation import Evaluation
    from ance_fast.evaluation.runs import RunSource

Measure = Callable[["RunSource"], "Evaluation"]

_MRR = re.compile(r"(?:MRR|RR)@([1-9]\d*)")


def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(help="Run files: TREC (qid Q0 docid rank score tag) or MS MARCO (qid docid rank).")
    ],
    qrels: Annotated[Path | None, typer.Option("--qrels", "-q", help="Judgements: TREC or BEIR qrels file.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas, of ir-measures or trec_eval (default: nDCG@10,RR@10,R@100); MRR@K with "
            "--protocol msmarco; top-K, MRR@K, P@K with --answers."
        ),
    ] = None,
    min_grade: Annotated[
        int | None,
        typer.Option(min=1, help="Grade from which on binary measures count (default: 1; TREC DL passages: 2)."),
    ] = None,
    protocol: Annotated[str, typer.Option(help="trec, or msmarco: the official MRR with its checks.")] = "trec",
    holes: Annotated[bool, typer.Option("--holes", help="Share of unjudged documents in the first 10 and overall.")] = (
        False
    ),
    document_separator: Annotated[
        str | None, typer.Option(help="Ids are DOCUMENT, this, CHUNK: a document's first chunk counts (MaxP).")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Questions with answers: nq-test.qa.csv, nq-dev.json, JSON Lines.")
    ] = None,
    passages: Annotated[
        str | None, typer.Option(help="Texts for --answers: psgs_w100.tsv, dpr:DIR, a token store, any data set.")
    ] = None,
    match: Annotated[
        str | None, typer.Option(help="How an answer is found in a text: string (default), regex, kilt.")
    ] = None,
    leaderboard: Annotated[
        Path | None, typer.Option(help="Write the run as `qid docid rank`; needs no judgements.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Ranks a query of --leaderboard (default: 1000).")
    ] = None,
    test: Annotated[str, typer.Option(help="Paired test against the first run: t, randomization, wilcoxon.")] = "t",
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Measure runs; with several, compare each with the first (paired, two-sided, on the first metric).

    Example: ance-fast evaluate ance.trec bm25.trec -q scifact/qrels/test.tsv

    Example: ance-fast evaluate ance.trec -q qrels.dev.small.tsv --protocol msmarco --holes

    Example: ance-fast evaluate nq.trec --answers nq-test.qa.csv --passages psgs_w100.tsv
    """
    _refuse_contradictions(runs, qrels, answers, passages, protocol, holes, leaderboard)
    _refuse_without(answers, "--match", match, "--answers FILE")
    _refuse_without(qrels, "--min-grade", min_grade, "--qrels FILE")
    _refuse_without(leaderboard, "--depth", depth, "--leaderboard FILE")
    refuse_missing_files(*runs, *(file for file in (qrels, answers) if file is not None))
    names = None if metrics is None else tuple(name.strip() for name in metrics.split(",") if name.strip())
    if names == ():
        raise ConfigError("--metrics is empty; name at least one, such as nDCG@10")
    from ance_fast.evaluation import best_chunks, write_ranks

    sources: list[RunSource] = [
        run if document_separator is None else best_chunks(run, document_separator) for run in runs
    ]
    rows: list[dict[str, Any]] = [{"run": str(run)} for run in runs]
    if leaderboard is not None:
        write_ranks(leaderboard, sources[0], depth or 1000)
        rows[0]["leaderboard"] = str(leaderboard)
    if answers is not None:
        _measure(rows, sources, _by_answers(answers, passages, names, match or "string"), test)
    elif qrels is not None:
        _measure(rows, sources, _by_judgements(qrels, names, protocol, min_grade or 1), test)
        if holes:
            _add_holes(rows, sources, qrels)
    if json:
        print_json(rows)
    else:
        columns = list(rows[0])
        print_table(columns, [[row[column] for column in columns] for row in rows])


def _refuse_contradictions(
    runs: list[Path],
    qrels: Path | None,
    answers: Path | None,
    passages: str | None,
    protocol: str,
    holes: bool,
    leaderboard: Path | None,
) -> None:
    if protocol not in ("trec", "msmarco"):
        raise ConfigError(f"--protocol {protocol}: choose trec or msmarco")
    if (answers is None) != (passages is None):
        raise ConfigError("--answers FILE and --passages FILE go together: answers are looked for in texts")
    if answers is not None and (qrels is not None or protocol == "msmarco" or holes):
        raise ConfigError("--answers measures without judgements: leave --qrels, --protocol and --holes out")
    if qrels is None and answers is None and (leaderboard is None or holes or protocol == "msmarco"):
        raise ConfigError("nothing to measure by: give --qrels FILE, or --answers FILE and --passages FILE")
    if leaderboard is not None and len(runs) > 1:
        raise ConfigError(f"--leaderboard takes one run, not {len(runs)}")
    refuse_missing_data(passages if passages is not None and not Path(passages).is_file() else None)


def _refuse_without(needed: object, option: str, given: object, needs: str) -> None:
    if given is not None and needed is None:
        raise ConfigError(f"{option} {given} goes with {needs}")


def _by_judgements(qrels: Path, names: tuple[str, ...] | None, protocol: str, min_grade: int) -> Measure:
    from ance_fast import evaluation
    from ance_fast.data import read_qrels
    from ance_fast.evaluation.metrics import DEFAULT_METRICS

    judged = read_qrels(qrels)
    if protocol == "trec":
        chosen = names or DEFAULT_METRICS
        return lambda run: evaluation.evaluate(run, judged, chosen, min_grade=min_grade)
    if min_grade > 1:
        raise ConfigError("--min-grade goes with --protocol trec: MS MARCO's judgements have one grade")
    found = [_MRR.fullmatch(name) for name in names or ("MRR@10", "MRR@100")]
    cuts = [int(one[1]) for one in found if one is not None]
    if len(cuts) < len(found):
        raise ConfigError(f"--metrics {','.join(names or ())}: --protocol msmarco has MRR@K alone, such as MRR@10")
    return lambda run: evaluation.evaluate_msmarco(run, judged, cuts)


def _by_answers(answers: Path, passages: str | None, names: tuple[str, ...] | None, match: str) -> Measure:
    from ance_fast.evaluation import evaluate_answers
    from ance_fast.evaluation.open_qa import DEFAULT_MEASURES, open_texts, read_answers

    given, texts = read_answers(answers), open_texts(str(passages))
    return lambda run: evaluate_answers(run, given, texts, names or DEFAULT_MEASURES, match=match)


def _measure(rows: list[dict[str, Any]], sources: list[RunSource], measure: Measure, test: str) -> None:
    from ance_fast.evaluation import MsmarcoEvaluation, paired_significance

    results = [measure(source) for source in sources]
    for row, result in zip(rows, results, strict=True):
        row["queries"] = result.num_queries
        if isinstance(result, MsmarcoEvaluation):
            row["ranked"] = result.queries_ranked
        row |= dict(result)
        if len(rows) > 1:
            first = next(iter(result))
            same = result is results[0]
            row["p_value"] = None if same else paired_significance(results[0], result, first, test=test).p_value


def _add_holes(rows: list[dict[str, Any]], sources: list[RunSource], qrels: Path) -> None:
    from ance_fast.data import read_qrels
    from ance_fast.evaluation import hole_rates

    judged = read_qrels(qrels)
    for row, source in zip(rows, sources, strict=True):
        rates = hole_rates(source, judged)
        row |= {f"hole@{rates.cut}": rates.at_cut, "hole": rates.overall}
