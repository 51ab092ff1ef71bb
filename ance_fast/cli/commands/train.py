"""ance-fast train"""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from ance_fast.cli.chunking import refuse_unknown_chunks
from ance_fast.cli.inputs import refuse_missing_data, refuse_missing_files, refuse_missing_model, refuse_unknown_preset
from ance_fast.cli.options import Chunks, TextPreset
from ance_fast.cli.output import print_json, print_table, program
from ance_fast.cli.recipes import chosen_recipe
from ance_fast.errors import ConfigError


def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="Training data: beir:DIR, msmarco:DIR, jsonl:FILE, a path; or triples:FILE (lines of query, positive, "
            "negative), trained on in the file's order."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint to start from: folder or Hugging Face id.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="A published run (see ance-fast recipes) or a .toml file; other options change it."),
    ] = None,
    data_folder: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Of a recipe: the folder with the downloads.")
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Rehearse the recipe in seconds, on generated data (written to --data).")
    ] = False,
    split: Annotated[str, typer.Option(help="Split of the judgements to train on.")] = "train",
    dev_split: Annotated[str | None, typer.Option(help="Split to measure at every refresh.")] = None,
    dev_data: Annotated[
        str | None, typer.Option(help="triples: the data set of the dev split; its corpus is tokenised once.")
    ] = None,
    dev_candidates: Annotated[
        Path | None, typer.Option(help="A run, or top1000.dev: dev queries also rank these passages alone.")
    ] = None,
    full_ranking: Annotated[bool, typer.Option(help="Measure dev queries against the whole corpus, too.")] = True,
    measure_every: Annotated[
        str | None, typer.Option(help="none: steps between two measurements of the dev split [only at the end].")
    ] = None,
    test_split: Annotated[str | None, typer.Option(help="Split to measure at the end; writes RUN/test.trec.")] = None,
    judged: Annotated[
        Path | None, typer.Option(help="More judgements of training queries (qrels file), to count false negatives by.")
    ] = None,
    num_layers: Annotated[int | None, typer.Option(min=1, help="Keep only the first layers.")] = None,
    two_towers: Annotated[
        bool, typer.Option("--two-towers", help="Train a query and a document encoder that both begin as MODEL.")
    ] = False,
    max_steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Queries of a forward and backward pass, in each process.")] = 32,
    gradient_accumulation: Annotated[int, typer.Option(help="Passes of an optimizer step.")] = 1,
    encode_tokens: Annotated[
        int | None, typer.Option(help="Encode a batch in chunks of so many tokens; bounds memory [at once].")
    ] = None,
    kept_tokens: Annotated[
        int | None, typer.Option(help="Tokens of chunks that are not encoded a second time for gradients [a chunk's].")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, or lamb as the original ANCE has it.")] = "adamw",
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr")] = 2e-5,
    adam_epsilon: Annotated[float, typer.Option(help="Of either optimizer.")] = 1e-8,
    lr_scheduler: Annotated[
        str, typer.Option(help="How the learning rate falls: linear, cosine (to 1e-8), constant, ...")
    ] = "linear",
    warmup_fraction: Annotated[float, typer.Option(help="Share of the steps that the learning rate rises.")] = 0.1,
    warmup_steps: Annotated[int | None, typer.Option(help="Or so many steps.")] = None,
    schedule_steps: Annotated[
        int | None, typer.Option(help="Step at which the learning rate has fallen [--max-steps].")
    ] = None,
    warmup: Annotated[str, typer.Option(help="once, or anew at each refresh.")] = "once",
    weight_decay: Annotated[float, typer.Option()] = 0.01,
    max_grad_norm: Annotated[float, typer.Option(help="Longer gradients are cut to this length.")] = 1.0,
    dropout: Annotated[float | None, typer.Option(help="Replaces the checkpoint's.")] = None,
    loss: Annotated[
        str, typer.Option(help="pairwise (ANCE's own) or contrastive (in-batch and mined).")
    ] = "contrastive",
    scale: Annotated[
        float | None, typer.Option(help="Multiplies scores [20 if embeddings are normalised, else 1].")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            help="queries: a batch is queries in a new order every epoch. triples: a refresh draws --triples-per-query "
            "negatives for each, and a batch is triples, those of a query one after another [queries]."
        ),
    ] = None,
    query_chunks: Annotated[
        int, typer.Option(help="triples: a refresh mines one of so many parts of the queries.")
    ] = 1,
    triples_per_query: Annotated[int, typer.Option(help="triples: negatives of a query between two refreshes.")] = 1,
    positives: Annotated[str, typer.Option(help="all of a query's, or the last in the file of judgements.")] = "all",
    start: Annotated[
        str, typer.Option(help="Negatives until the first refresh: bm25, random, index, dataset.")
    ] = "bm25",
    refresh: Annotated[
        str | None,
        typer.Option(
            help="sync stops to encode and mine everything; rolling encodes a slice of the corpus before every step "
            "and mines each batch; async leaves it all to a second process; none keeps the start negatives [sync]."
        ),
    ] = None,
    refresh_every: Annotated[
        str, typer.Option(help='"500" steps, "2 epochs", or by ranges of steps: "0-1000:500,1000-:1000".')
    ] = "1 epoch",
    first_refresh: Annotated[str | None, typer.Option(help="End of the warm-up [the first of the schedule].")] = None,
    max_refreshes: Annotated[int | None, typer.Option(help="sync: stop refreshing after so many.")] = None,
    refresh_overlap: Annotated[
        float | None,
        typer.Option(help="sync: skip a refresh while a probe keeps this share of its ten best negatives."),
    ] = None,
    max_staleness: Annotated[
        int | None,
        typer.Option(help="Steps that a negative's vector may be old; rolling takes its slice from it, async waits."),
    ] = None,
    rolling_slice: Annotated[
        int | None, typer.Option(help="rolling: passages encoded before each step [as many as a step trains on].")
    ] = None,
    rolling_hot: Annotated[int, typer.Option(help="rolling: so many more, from recently mined lists.")] = 0,
    rerank: Annotated[
        int | None, typer.Option(help="rolling: retrieve so many, encode them anew, keep the best --topk.")
    ] = None,
    refresh_device: Annotated[
        str | None, typer.Option(help="async: where to encode and mine, as cuda:1 [a GPU that is free].")
    ] = None,
    refresh_threads: Annotated[
        int | None, typer.Option(help="async: CPU threads of its process [a third of them].")
    ] = None,
    topk: Annotated[int, typer.Option(help="Retrieved passages to draw negatives from.")] = 200,
    negatives: Annotated[int, typer.Option(help="Negatives a query.")] = 1,
    sampler: Annotated[
        str, typer.Option(help='ance, star, ance-tele, nv-retriever, simans; changes after commas: "simans,a=50".')
    ] = "ance",
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help='A run file that the sampler names as a source, as in "ance,sources=index+NAME", or teacher=FILE, the '
            "scores of a teacher. Repeatable.",
        ),
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(
            help='JSON Lines, {"query": ID, "answers": [...]}, or "dataset" (dpr:, kilt:): what holds an answer is no '
            "negative."
        ),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(help="Lines PASSAGE<tab>DOCUMENT: no negatives from a positive's own document."),
    ] = None,
    document_separator: Annotated[
        str | None, typer.Option(help='Or what ends the document in an id, "#" in "doc7#0".')
    ] = None,
    chunks: Chunks = None,
    max_query_length: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    max_document_length: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    index_factory: Annotated[str, typer.Option(help="FAISS index_factory string for mining.")] = "Flat",
    save_every: Annotated[str | None, typer.Option(help="Checkpoint interval [the refresh interval].")] = None,
    logging_steps: Annotated[int, typer.Option(min=1, help="Steps between lines of RUN/metrics.jsonl.")] = 10,
    seed: Annotated[int, typer.Option()] = 42,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    num_proc: Annotated[int, typer.Option(min=1, help="Tokenising processes.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest valid checkpoint.")] = False,
    text_preset: TextPreset = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on the last line.")] = False,
) -> None:
    """Train with negatives from an index of the corpus, refreshed while the encoder learns.

    Example: ance-fast train beir:scifact -m intfloat/e5-small-v2 -o run --max-steps 500 --refresh-every 100

    Or, never stopping: ance-fast train beir:scifact -m intfloat/e5-small-v2 -o run --refresh rolling --max-staleness 50

    Or beside it: ance-fast train beir:scifact -m intfloat/e5-small-v2 -o run --refresh async --max-staleness 200

    A warm-up on triples, measured: ance-fast train triples:triples.train.small.tsv -m roberta-base -o run
    --loss pairwise --dev-data msmarco:DIR --dev-split dev.small --measure-every 5000

    All but rolling also in several processes: torchrun --nproc-per-node 2 -- $(which ance-fast) train ...

    A published run: ance-fast train --recipe msmarco-passage-firstp --data msmarco -m warmup/final -o run
    """
    chosen = chosen_recipe(context)
    if chosen is None and (data_folder or tiny):
        raise ConfigError("--data and --tiny are for --recipe NAME")
    if chosen is not None:
        chosen.prepare()
    refuse_unknown_chunks(chunks, max_document_length)
    refuse_missing_data(data)
    if dev_data is not None:
        refuse_missing_data(dev_data)
    refuse_missing_model(model)
    refuse_unknown_preset(text_preset)
    refuse_missing_files(
        *(_named_file(text)[1] for text in candidates or []),
        *(file for file in (judged, None if answers == "dataset" else answers, documents, dev_candidates) if file),
    )
    from ance_fast.data import load_dataset, read_qrels, write_run
    from ance_fast.models import Encoder
    from ance_fast.training import AnceConfig, AnceTrainer
    from ance_fast.training.ranks import join, leave

    ranks = join(device)
    if not ranks.leads:
        logging.getLogger("ance_fast").setLevel(logging.WARNING)  # the first says it for all
    triples = data.startswith("triples:")
    if dev_data is not None and not triples:
        raise ConfigError("--dev-data is for triples:FILE; dev queries of other data are asked of its own corpus")
    if triples and not dev_data and (dev_split or test_split):
        raise ConfigError(f"{data} has no splits to measure; --dev-data says which data set has them")
    if triples and test_split and not full_ranking:
        raise ConfigError("--test-split is searched for in the dev corpus, which --no-full-ranking never encodes")
    config = AnceConfig(
        output_dir=str(output),
        max_steps=max_steps,
        batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation,
        encode_tokens=encode_tokens,
        kept_tokens=kept_tokens,
        optimizer=optimizer,
        learning_rate=learning_rate,
        adam_epsilon=adam_epsilon,
        lr_scheduler=lr_scheduler,
        warmup_fraction=warmup_fraction,
        warmup_steps=warmup_steps,
        warmup=warmup,
        schedule_steps=schedule_steps,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        dropout=dropout,
        loss=loss,
        scale=scale,
        order=order or ("triples" if triples else "queries"),
        query_chunks=query_chunks,
        triples_per_query=triples_per_query,
        positives=positives,
        start=start,
        refresh=refresh or ("none" if triples else "sync"),
        measure_every=measure_every,
        dev_candidates=str(dev_candidates) if dev_candidates else None,
        full_ranking=full_ranking,
        refresh_every=refresh_every,
        first_refresh=first_refresh,
        max_refreshes=max_refreshes,
        refresh_overlap=refresh_overlap,
        max_staleness=max_staleness,
        rolling_slice=rolling_slice,
        rolling_hot=rolling_hot,
        rerank=rerank,
        refresh_device=refresh_device,
        refresh_threads=refresh_threads,
        topk=topk,
        negatives_per_query=negatives,
        sampler=sampler,
        candidates=_named_files(candidates or []),
        answers=answers,
        documents=documents,
        document_separator=document_separator,
        chunks=chunks,
        max_query_length=max_query_length,
        max_document_length=max_document_length,
        index_factory=index_factory,
        save_every=save_every,
        logging_steps=logging_steps,
        seed=seed,
        num_proc=num_proc,
        **(chosen.settings if chosen is not None else {}),
    )
    dataset = load_dataset(data, split=split)
    dev = load_dataset(dev_data or data, split=dev_split) if dev_split or dev_data else None
    test = load_dataset(dev_data or data, split=test_split) if test_split else None
    judgements = read_qrels(judged) if judged else None
    encoder = Encoder.load(model, device=device, dtype="float32", num_layers=num_layers, text_preset=text_preset)
    encoder = encoder.two_towers() if two_towers else encoder
    trainer = AnceTrainer(encoder, dataset, config, dev=dev, judged=judgements, ranks=ranks)
    result: dict[str, Any] = {"output": str(output), "dev": trainer.train(resume=resume), "seconds": trainer.seconds}
    if ranks.leads:
        result["report"] = str(output / "report.html")
        if test is not None:
            run, evaluation = trainer.evaluate_on(test)
            write_run(output / "test.trec", run, output.name)
            result["test"] = dict(evaluation)
        if chosen is not None:
            result["then"] = chosen.then(output)
            if not tiny:
                result["expect"] = chosen.recipe.expect
        _report(result, output, json)
    leave(ranks)


def _report(result: dict[str, Any], output: Path, json: bool) -> None:
    if json:
        print_json(result)
        return
    for name in ("dev", "test"):
        if result.get(name):
            print_table(list(result[name]), [list(result[name].values())], title=name)
    if result.get("expect"):
        print_table(("published", "figure"), [(name, f"{value:g}") for name, value in result["expect"].items()])
    print(f"Report: {result['report']}")
    for command in result.get("then", ()):
        print(f"Measure it: {command}")
    if (output / "index").exists():
        print(f"Search it: {program()} search {shlex.quote(str(output))} 'your query'")


def _named_files(texts: list[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for name, path in map(_named_file, texts):
        if name in files:
            raise ConfigError(f"--candidates: {name} is given twice, as {files[name]} and {path}")
        files[name] = path
    return files


def _named_file(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ConfigError(f"--candidates {text!r}: give NAME=FILE, such as bm25=run.trec")
    return name, path
