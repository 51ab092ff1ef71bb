"""Encoding beside its alternatives: one process, one thread, alternating, each held against the machine's own ceiling.

    python -m benchmarks.encode [--data DIR --max-length N] [--device cpu] [--passages 200] [--rounds 5] [--out DIR]

All get the same texts and weights, and equality of the outputs is asserted before anything is timed. A round times
every contestant once, in an order that alternates, and between them the ceiling: the products of the model's own layers
(1,024 tokens through query+key+value, output, up and down projection by torch.mm), one after the other for half a
second. Useful FLOPs are those of real tokens: 2 x weights of the products x tokens, and 4 L^2 d a layer for the
attention of a sequence of L tokens. The share of the ceiling is useful FLOPs a second / ceiling, both at their best of
the rounds and as the median within rounds; ratios are theirs / ours within a round, so that what the machine does
meanwhile touches both. "tokens" contestants start from token ids, the others from text. CPU seconds are this process's
own. On CUDA, seconds are wall time around a synchronised call.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torch import Tensor

from ance_fast import Encoder, __version__
from ance_fast.artifacts import atomic_file, write_json
from ance_fast.cli.demo.data import model_folder, write_data
from ance_fast.data import load_corpus
from ance_fast.inspection import cpu_model
from ance_fast.models.int8 import export_onnx, int8_overlap, onnx_runtime, open_onnx, quantize
from ance_fast.ops.dispatch import dispatch_counts
from benchmarks.results import source

OURS = "ance_fast"
BATCH_SIZES = (8, 16, 32, 128)
DATA = Path(os.environ.get("ANCE_FAST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
CORPORA = (("debian", 128), ("scifact", 256))
CEILING_TOKENS = 1024
OVERLAP_SAMPLE = 400
# Largest difference from our own float32 embeddings, by what the contestant computes in.
TOLERANCE = {"float32": 1e-5, "half": 3e-2, "int8": np.inf}

Encode = Callable[[], Any]


@dataclass(frozen=True)
class Contestant:
    """Something that encodes the texts; `encode` returns float32 [n, dim] as NumPy or torch."""

    name: str
    encode: Encode
    precision: str = "float32"


@dataclass(frozen=True)
class Work:
    """The texts of one corpus, cut at max_length, with their token ids."""

    name: str
    max_length: int
    texts: list[str]
    candidates: list[str]  # the sample that the overlap of int8 is measured on
    shard: tuple[np.ndarray, np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.shard[1]).astype(np.float64)


def main(arguments: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(options.threads)
    reports = [measure(name, folder, length, options) for name, folder, length in corpora(options)]
    document = {"system": system(options), "corpora": reports}
    text = markdown(document)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / "encode.json", document)
        with atomic_file(options.out / "encode.md") as staging:
            staging.write_text(text, encoding="utf-8")
    print(text)
    print(json.dumps(document))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.encode", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="BEIR folder [debian and scifact where they are, else the demo's corpus]")
    parser.add_argument("--max-length", type=int, help="where texts are cut, in tokens [128; 256 for scifact]")
    parser.add_argument("--model", help="checkpoint [the packaged all-MiniLM-L6-v2]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--passages", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, nargs="+", help="token budgets of ours, beside the default")
    parser.add_argument("--only", nargs="+", help="contestants whose name contains one of these, beside ours")
    parser.add_argument("--out", type=Path, help="folder that receives encode.json and encode.md")
    options = parser.parse_args(arguments)
    if min(options.passages, options.rounds, options.threads) < 1:
        parser.error("--passages, --rounds and --threads must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    return options


def corpora(options: argparse.Namespace) -> list[tuple[str, str | None, int]]:
    """(name, folder or None for the demo's, max length)."""
    if options.data is not None:
        return [(Path(options.data).name, options.data, options.max_length or 128)]
    found: list[tuple[str, str | None, int]] = [
        (name, str(DATA / name), options.max_length or length) for name, length in CORPORA if (DATA / name).is_dir()
    ]
    return found or [("demo", None, options.max_length or 128)]


def measure(name: str, folder: str | None, max_length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time every contestant on one corpus."""
    ours = Encoder.load(
        options.model or str(model_folder()), device=options.device, dtype="float32", max_document_length=max_length
    )
    texts = sample(folder, options.passages)
    tokens = ours._tokenize([ours.document_prompt + text for text in texts], max_length)
    work = Work(name, max_length, texts, sample(folder, OVERLAP_SAMPLE), (tokens.values, tokens.offsets))
    contestants, notes = entries(ours, work, options)
    differences = agreement(contestants)  # also the warm-up
    ceiling = Ceiling(ours)
    rounds = [time_round(contestants, ceiling, reverse=number % 2 == 1) for number in range(options.rounds)]
    best_ceiling = max(one["ceiling"] for one in rounds)
    flops = useful_flops(ours, work.lengths)
    return {
        "corpus": name,
        "max_length": max_length,
        "passages": len(texts),
        "tokens": int(work.lengths.sum()),
        "lengths": {f"p{p}": float(np.percentile(work.lengths, p)) for p in (5, 25, 50, 75, 95, 100)},
        "useful_gflop": flops / 1e9,
        "ceiling_gflops": best_ceiling,
        "ceiling_by_round": [one["ceiling"] for one in rounds],
        "contestants": [
            row(one, rounds, flops, best_ceiling, differences[one.name], len(texts), work) for one in contestants
        ],
        "notes": notes,
        "encoder": ours.info(),
    }


def row(
    one: Contestant, rounds: list[dict[str, float]], flops: float, ceiling: float, difference: float, n: int, work: Work
) -> dict[str, Any]:
    seconds = [times[one.name] for times in rounds]
    ratios = [times[one.name] / times[OURS] for times in rounds]
    best = min(seconds)
    return {
        "name": one.name,
        "seconds": seconds,
        "passages_per_second": n / best,
        "tokens_per_second": float(work.lengths.sum()) / best,
        "of_ceiling": flops / best / 1e9 / ceiling,
        "of_ceiling_within_rounds": statistics.median(
            flops / times[one.name] / 1e9 / times["ceiling"] for times in rounds
        ),
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "max_abs_difference": difference,
    }


def entries(ours: Encoder, work: Work, options: argparse.Namespace) -> tuple[list[Contestant], list[str]]:
    """Everybody who can run here, ours first, and a line about each who cannot."""
    budgets = options.batch_tokens or []
    found = [
        Contestant(OURS, lambda: ours.encode_document(work.texts)),
        Contestant(f"{OURS} tokens", lambda: ours.encode_tokens([work.shard])),
        *(
            Contestant(
                f"{OURS} tokens, budget {b}", functools.partial(ours.encode_tokens, [work.shard], batch_tokens=b)
            )
            for b in budgets
        ),
    ]
    notes: list[str] = []
    rivals = cuda_rivals if ours.device.type == "cuda" else cpu_rivals
    for make in rivals(ours, work, options):
        try:
            found += make()
        except ImportError as error:
            notes.append(f"left out: {error}")
    wanted = options.only
    return [c for c in found if c.name.startswith(OURS) or not wanted or any(w in c.name for w in wanted)], notes


def cpu_rivals(ours: Encoder, work: Work, options: argparse.Namespace) -> list[Callable[[], list[Contestant]]]:
    checkpoint = options.model or str(model_folder())

    def sentence_transformers() -> list[Contestant]:
        theirs = sentence_transformer(checkpoint, "cpu", work.max_length)
        return [
            Contestant(
                f"sentence-transformers batch {size}" + (" (default)" if size == 32 else ""),
                functools.partial(theirs.encode, work.texts, batch_size=size),
            )
            for size in BATCH_SIZES
        ]

    def transformers() -> list[Contestant]:
        model = ours.backbone.model
        return [
            Contestant("transformers, arrival order, batch 32", padded_in_order(ours, work, 32, model_runner(model)))
        ]

    def onnx() -> list[Contestant]:
        runtime = onnx_runtime()
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(ours.backbone, Path(folder) / "model.onnx")
            session = open_onnx(runtime, Path(folder) / "model.onnx")
        small = quantize(ours, work.candidates, threshold=0.0, sample=12)
        overlap = int8_overlap(ours, small, work.candidates, sample=len(work.candidates))
        return [
            Contestant(
                "ONNX Runtime float32, sorted, batch 8", padded_in_order(ours, work, 8, session_runner(session), True)
            ),
            Contestant(
                f"{OURS} int8 tokens, top-10 overlap {overlap:.3f} of {len(work.candidates)}",
                lambda: small.encode_tokens([work.shard]),
                "int8",
            ),
        ]

    return [sentence_transformers, transformers, onnx]


def cuda_rivals(ours: Encoder, work: Work, options: argparse.Namespace) -> list[Callable[[], list[Contestant]]]:
    checkpoint = options.model or str(model_folder())

    def own_half() -> list[Contestant]:
        made = []
        for dtype in ("float16", "bfloat16"):
            half = Encoder.load(checkpoint, device="cuda", dtype=dtype, max_document_length=work.max_length)
            made.append(
                Contestant(f"{OURS} {dtype} tokens", functools.partial(half.encode_tokens, [work.shard]), "half")
            )
        return made

    def sentence_transformers() -> list[Contestant]:
        made = []
        for label, dtype, compiled in (("", None, False), (" compiled", None, True), (" bf16", torch.bfloat16, False)):
            theirs = sentence_transformer(checkpoint, "cuda", work.max_length)
            if dtype is not None:
                theirs = theirs.to(dtype)
            if compiled:
                theirs.compile(dynamic=True)
            for size in (32, 128, 512):
                encode = functools.partial(theirs.encode, work.texts, batch_size=size)
                made.append(
                    Contestant(f"sentence-transformers{label} batch {size}", encode, "half" if dtype else "float32")
                )
        return made

    return [own_half, sentence_transformers]


def sentence_transformer(checkpoint: str, device: str, max_length: int) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(checkpoint, device=device)
    model.max_seq_length = max_length
    return model


def model_runner(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def run(ids: Tensor, mask: Tensor) -> Tensor:
        # The packed attention function would ignore the mask.
        inner = model.config._attn_implementation
        model.set_attn_implementation("sdpa")
        try:
            with torch.no_grad():
                return model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        finally:
            model.set_attn_implementation(inner)

    return run


def session_runner(session: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def run(ids: Tensor, mask: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()})[0])

    return run


def padded_in_order(
    ours: Encoder, work: Work, size: int, run: Callable[[Tensor, Tensor], Tensor], by_length: bool = False
) -> Encode:
    """Encode token lists in padded batches of `size`, mean-pooled and normalised as all-MiniLM-L6-v2 does."""
    values, offsets = work.shard
    order = np.argsort(-work.lengths, kind="stable") if by_length else np.arange(len(work.texts))
    pad = ours.backbone.pad_token_id

    def encode() -> Tensor:
        out = torch.zeros(len(order), ours.dim)
        for begin in range(0, len(order), size):
            rows = order[begin : begin + size]
            lists = [torch.from_numpy(values[offsets[r] : offsets[r + 1]].astype(np.int64)) for r in rows]
            ids = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=pad)
            mask = torch.arange(ids.shape[1]) < torch.tensor([len(one) for one in lists]).unsqueeze(1)
            hidden = run(ids, mask) * mask.unsqueeze(2)
            out[torch.from_numpy(rows)] = torch.nn.functional.normalize(
                hidden.sum(1) / mask.sum(1, keepdim=True), dim=1
            )
        return out

    return encode


class Ceiling:
    """The products of one layer of the model on CEILING_TOKENS tokens, GFLOP/s."""

    def __init__(self, encoder: Encoder) -> None:
        config, like = encoder.backbone.model.config, next(encoder.backbone.model.parameters())
        width, wide = config.hidden_size, config.intermediate_size
        self.products = [
            (
                like.new_empty(CEILING_TOKENS, k).normal_(),
                like.new_empty(m, k).normal_(),
                like.new_empty(CEILING_TOKENS, m),
            )
            for k, m in ((width, 3 * width), (width, width), (width, wide), (wide, width))
        ]
        self.device = like.device.type

    def __call__(self) -> float:
        """All four in turn for a while: a clock that is high for a millisecond is no ceiling for a run."""
        seconds = 0.5 if self.device == "cpu" else 0.05
        flops = spent = 0.0
        with torch.no_grad():
            while spent < seconds:
                spent += timed(self._layer, self.device)
                flops += sum(2 * x.shape[0] * x.shape[1] * w.shape[0] for x, w, _ in self.products)
        return flops / spent / 1e9

    def _layer(self) -> None:
        for x, w, out in self.products:
            torch.mm(x, w.t(), out=out)


def useful_flops(encoder: Encoder, lengths: np.ndarray) -> float:
    config = encoder.backbone.model.config
    d, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return float(layers * (2 * lengths.sum() * (4 * d * d + 2 * d * f) + 4 * d * (lengths**2).sum()))


def timed(call: Encode, device: str = "cpu") -> float:
    if device == "cpu":
        begin = time.process_time()
        call()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def time_round(contestants: list[Contestant], ceiling: Ceiling, reverse: bool) -> dict[str, float]:
    """Seconds of each contestant, and under "ceiling" the best GFLOP/s of the products measured between them."""
    ordered = contestants[::-1] if reverse else contestants
    times: dict[str, float] = {"ceiling": 0.0}
    for one in ordered:
        times["ceiling"] = max(times["ceiling"], ceiling())
        times[one.name] = timed(one.encode, ceiling.device)
    return times


def agreement(contestants: list[Contestant]) -> dict[str, float]:
    """Largest difference of each from ours; ends the run when one computes something else."""
    outputs = {one.name: _host(one.encode()) for one in contestants}
    differences = {name: float(np.abs(output - outputs[OURS]).max()) for name, output in outputs.items()}
    for one in contestants:
        if not differences[one.name] <= TOLERANCE[one.precision]:
            sys.exit(f"{one.name} differs from {OURS} by {differences[one.name]:.1e}: not comparable")
    return differences


def _host(output: Any) -> np.ndarray:
    return output.float().cpu().numpy() if isinstance(output, Tensor) else np.asarray(output, dtype=np.float32)


@functools.cache
def _documents(folder: str | None) -> list[str]:
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            write_data(Path(made) / "data", None)
            return _documents(str(Path(made) / "data"))
    return [document.full_text for document in load_corpus(folder)]


def sample(folder: str | None, count: int) -> list[str]:
    """Evenly spaced passages of a corpus."""
    documents = _documents(folder)
    rows = np.linspace(0, len(documents) - 1, min(count, len(documents))).astype(int)
    return [documents[row] for row in rows]


def system(options: argparse.Namespace) -> dict[str, Any]:
    import importlib.metadata

    versions = {"ance_fast": __version__, "torch": torch.__version__}
    for name in ("sentence-transformers", "transformers", "onnxruntime"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": f"{cpu_model()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "threads": options.threads,
        "rounds": options.rounds,
        "load_average": os.getloadavg(),
        "versions": versions,
        "source": source(),
        "dispatch": dispatch_counts(),
    }


def markdown(document: dict[str, Any]) -> str:
    about = document["system"]
    lines = [
        "# Encoding",
        "",
        f"{about['gpu'] or about['machine']}, {about['threads']} thread(s), {about['rounds']} rounds, {about['date']}, "
        f"load {about['load_average'][0]:.1f}.",
    ]
    for corpus in document["corpora"]:
        spread = ", ".join(f"{key} {value:.0f}" for key, value in corpus["lengths"].items())
        lines += [
            "",
            f"## {corpus['corpus']}: {corpus['passages']} passages, {corpus['tokens']} tokens, cut at "
            f"{corpus['max_length']} (lengths {spread})",
            "",
            f"Ceiling of the model's products: {corpus['ceiling_gflops']:.1f} GFLOP/s.",
            "",
            "| contestant | passages/s | of ceiling, best | median of rounds | time / ours (min to max) | difference |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for one in corpus["contestants"]:
            ratio = one["ratio"]
            lines.append(
                f"| {one['name']} | {one['passages_per_second']:.1f} | {one['of_ceiling']:.1%} | "
                f"{one['of_ceiling_within_rounds']:.1%} | "
                f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) | {one['max_abs_difference']:.0e} |"
            )
        lines += [f"- {note}" for note in corpus["notes"]]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
