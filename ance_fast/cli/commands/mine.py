"""ance-fast mine"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ance_fast.cli.inputs import refuse_missing_data, refuse_missing_folder, refuse_missing_model, refuse_unknown_preset
from ance_fast.cli.options import TextPreset
from ance_fast.cli.output import print_json, print_stages
from ance_fast.errors import ConfigError

if TYPE_CHECKING:
    from ance_fast.data import Dataset
    from ance_fast.encoding import StageTimes
    from ance_fast.index import Index
    from ance_fast.mining.for_training import TrainingNegatives
    from ance_fast.models import Encoder

FORMATS = ("jsonl", "trec", "ance")


def mine(
    data: Annotated[str, typer.Argument(help="Training data: beir:DIR, msmarco:DIR, jsonl:FILE, or a path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="NAME.jsonl, NAME.trec or ann_training_data_N.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint folder or Hugging Face id.")],
    index: Annotated[
        Path | None,
        typer.Option(help="Index or embeddings of this corpus that MODEL made [encodes it, to OUTPUT.embeddings]."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="ip (as training compares) or cosine [the index's, or ip].")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the judgements: their queries, and what is no negative.")] = (
        "train"
    ),
    form: Annotated[str | None, typer.Option("--format", help="jsonl, trec or ance [by the name of OUTPUT].")] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives a query, at most.")] = 20,
    topk: Annotated[int, typer.Option(min=1, help="Nearest passages to take them from; positives do not count.")] = 200,
    range_min: Annotated[int, typer.Option(min=0, help="Skip so many of the nearest.")] = 0,
    sampling: Annotated[str, typer.Option(help="random (uniform), or top.")] = "random",
    absolute_margin: Annotated[
        float | None, typer.Option(help="Negatives score at least so much below the lowest positive.")
    ] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="The same as a share of that positive's score: 0.05.")
    ] = None,
    max_score: Annotated[float | None, typer.Option(help="Negatives score at most this.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Negatives score at least this.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="jsonl: with the model's scores.")] = False,
    dev_split: Annotated[
        str | None, typer.Option(help="ance: measure nDCG@10 on it and write ann_ndcg_N as well.")
    ] = None,
    max_query_length: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    max_document_length: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of random draws.")] = 42,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    text_preset: TextPreset = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Mine hard negatives for every training query: the nearest passages that are none of its positives.

    Writes training JSONL, which `ance-fast train --start dataset` reads, a TREC run of the negatives, or
    the ann_training_data_N of microsoft/ANCE. A run that was cut off goes on with the embeddings it has.

    Example: ance-fast mine beir:scifact -m intfloat/e5-small-v2 -o scifact.negatives.jsonl --relative-margin 0.05

    Example: ance-fast mine beir:scifact -m run/final --index run/index -o negatives.trec --sampling top
    """
    form = form or _form_of(output)
    generation = _checked_generation(form, output, dev_split)
    if scores and form != "jsonl":
        raise ConfigError(f"--scores is for jsonl; {form} has them already or no place for them")
    if metric not in (None, "ip", "cosine"):
        raise ConfigError(f"--metric {metric!r}: choose ip or cosine")
    refuse_missing_data(data)
    refuse_missing_model(model)
    refuse_unknown_preset(text_preset)
    refuse_missing_folder(index)
    from ance_fast.mining.limits import Limits

    limits = Limits(topk, range_min, max_score, min_score, absolute_margin, relative_margin)
    limits.refuse_too_few(negatives)
    limits.refuse_unknown_sampling(sampling)
    from ance_fast.data import load_dataset
    from ance_fast.encoding import StageTimes
    from ance_fast.mining.for_training import mine_for_training, training_needs
    from ance_fast.models import Encoder
    from ance_fast.progress import progress_bar

    times = StageTimes()
    with times.running():
        dataset = load_dataset(data, split=split)
        dev = None if dev_split is None else load_dataset(data, split=dev_split)
        encoder = Encoder.load(
            model,
            device=device,
            dtype="float32",
            max_query_length=max_query_length,
            max_document_length=max_document_length,
            text_preset=text_preset,
        )
        _refuse_chunks(encoder.chunks is not None)
        passages = _passages(encoder, dataset, index, metric, output, times)
        _refuse_chunks(passages.document_separator is not None)
        needs = training_needs(dataset, passages)
        encoded = _encoded(encoder.for_queries, dataset, needs.queries, times)
        with times.host("search"), progress_bar("mining", len(needs.queries), "queries") as advance:
            found = mine_for_training(
                needs,
                passages,
                encoded,
                limits,
                negatives,
                sampling=sampling,
                seed=seed,
                score_positives=scores,
                progress=advance,
            )
        report = None if dev is None else _measured(encoder, dev, passages, times)
        with times.host("write"):
            _write_as(form, output, found, model, generation, report, scores=scores, seed=seed)
    summary = _summary(found, form, output, negatives, times)
    if report is not None:
        summary["ndcg"] = report
    if json:
        print_json(summary)
        return
    fewer = f"; {summary['fewer']:,} queries have fewer than {negatives}" if summary["fewer"] else ""
    print(f"{output}: {summary['negatives']:,} negatives for {summary['queries']:,} queries{fewer}")
    if form == "ance" and report is None:
        print(f"microsoft/ANCE's trainer waits for ann_ndcg_{generation}: --dev-split SPLIT writes it")
    print_stages(summary, "queries")


def _refuse_chunks(found: bool) -> None:
    if found:
        raise ConfigError(
            "passages are chunks of documents here (MaxP), and mining for a file knows nothing of them; give an "
            "encoder and an index of whole documents, or train with --chunks, which mines documents itself"
        )


def _form_of(output: Path) -> str:
    name = output.name.removesuffix(".gz")
    if re.fullmatch(r"ann_training_data_\d+", name):
        return "ance"
    form = {".jsonl": "jsonl", ".trec": "trec", ".run": "trec"}.get(Path(name).suffix)
    if form is None:
        raise ConfigError(f"{output}: the name does not say what to write; add --format {', '.join(FORMATS)}")
    return form


def _checked_generation(form: str, output: Path, dev_split: str | None) -> int | None:
    """N of ann_training_data_N, None for other forms."""
    if form not in FORMATS:
        raise ConfigError(f"--format {form!r}: choose {', '.join(FORMATS)}")
    match = re.fullmatch(r"ann_training_data_(\d+)", output.name)
    if form == "ance" and match is None:
        raise ConfigError(f"{output}: microsoft/ANCE finds its files by their names; call it ann_training_data_0, ...")
    if form != "ance" and dev_split is not None:
        raise ConfigError("--dev-split goes with ann_training_data_N: its result is written to ann_ndcg_N")
    return int(match[1]) if match and form == "ance" else None


def _passages(
    encoder: Encoder, dataset: Dataset, made: Path | None, metric: str | None, output: Path, times: StageTimes
) -> Index:
    """The index to mine from: the one given, or an exact one over embeddings as files, made now if there are none."""
    from ance_fast.artifacts import read_manifest
    from ance_fast.encoding import EmbeddingShards, encode_corpus
    from ance_fast.index import Index

    fingerprint = encoder.fingerprint()
    if made is not None and read_manifest(made).get("kind") == "index":
        index = Index.load(made, fingerprint=fingerprint, tokenizer=encoder.tokenizer)
        if metric not in (None, index.metric):
            raise ConfigError(f"{made}: compares by {index.metric}, not by {metric}; leave --metric out")
        return index
    if made is not None:
        shards = EmbeddingShards.open(made, fingerprint=fingerprint, tokenizer=encoder.tokenizer)
    else:
        place = output.with_name(output.name + ".embeddings")
        shards = encode_corpus(encoder, dataset.corpus, place, times=times, show_progress=True)
    return Index.over(shards, metric=metric or "ip", fingerprint=fingerprint)


def _encoded(tower: Encoder, dataset: Dataset, queries: list[str], times: StageTimes) -> Any:
    from ance_fast.data import TokenStore
    from ance_fast.encoding import encode_matrix
    from ance_fast.encoding.budget import default_budget
    from ance_fast.encoding.stages import batches_on
    from ance_fast.progress import progress_bar

    with times.host("tokenise"):
        tokens = TokenStore.of_queries(
            dataset,
            queries,
            tower.tokenizer,
            max_length=tower.max_query_length,
            prompt=tower.query_prompt,
        )
    with progress_bar("encoding queries", len(tokens), "queries") as advance:
        budget = default_budget(tower.device)
        matrix = encode_matrix(tower, tokens, batch_tokens=budget, times=times, on_batch=batches_on(advance))
    return matrix.cpu().numpy()


def _measured(encoder: Encoder, dev: Dataset, index: Index, times: StageTimes) -> float:
    from ance_fast.evaluation import evaluate

    encoded = _encoded(encoder.for_queries, dev, list(dev.queries), times)
    with times.host("search"):
        run = index.search(encoded, 100).to_run(list(dev.queries))
    return float(evaluate(run, dev.qrels, metrics=["nDCG@10"])["nDCG@10"])


def _write_as(
    form: str,
    output: Path,
    found: TrainingNegatives,
    model: str,
    generation: int | None,
    ndcg: float | None,
    *,
    scores: bool,
    seed: int,
) -> None:
    from ance_fast.data import write_run
    from ance_fast.data.ance_files import AnnReport, write_ann_generation, write_ann_training_data
    from ance_fast.mining.for_training import as_ance, as_run, write_training_jsonl

    if form == "jsonl":
        write_training_jsonl(output, found, scores=scores)
    elif form == "trec":
        write_run(output, as_run(found), output.stem)
    elif generation is not None and ndcg is not None:
        report = AnnReport({"ndcg": ndcg}, model)
        write_ann_generation(output.parent, generation, as_ance(found, seed=seed), report)
    else:
        write_ann_training_data(output, as_ance(found, seed=seed))


def _summary(found: TrainingNegatives, form: str, output: Path, asked: int, times: StageTimes) -> dict[str, Any]:
    each = (found.mined.rows >= 0).sum(axis=1)
    stages = {name: value for name, value in times.summary().items() if not name.startswith("passages")}
    return {
        "path": str(output),
        "format": form,
        "queries": len(each),
        "queries_per_s": len(each) / max(times.wall, 1e-9),
        "negatives": int(each.sum()),
        "fewer": int((each < asked).sum()),
        "removed": found.mined.removed,
        "corpus": len(found.index),
        **stages,
    }
