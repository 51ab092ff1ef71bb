"""A whole corpus through the command line, with the memory each command takes: tokenize, encode, index, search.

    python -m benchmarks.scale --out DIR [--data DIR ...] [--passages 1000000] [--max-length 64] [--layers 2]

The corpora (every data set beside the repository, or the demo's) are read one after the other through a pipe, again
with changed ids until there are `--passages` of them. Every step is the command a user would type, in a process of its
own; its peak memory is compared with that of a process that only loads the model and encodes one passage. DIR receives
scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ance_fast.artifacts import write_json
from ance_fast.cli.demo.data import model_folder, write_data
from ance_fast.data import load_corpus
from ance_fast.models import Encoder
from benchmarks import results

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BASELINE = "import sys; from ance_fast import Encoder; Encoder.load(sys.argv[1], device='cpu').encode_document(['one'])"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", help="BEIR folders [those beside the repository, else the demo's]")
    parser.add_argument("--passages", type=int, help="repeat the corpora with changed ids up to so many")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--factories", nargs="+", default=["Flat", "on-disk", "IVF256,PQ48"])
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        report = run(Path(folder), options)
    write_json(options.out / "scale.json", report)
    print(json.dumps(report, indent=1))


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    model = folder / "model"
    Encoder.load(
        str(model_folder()), device="cpu", num_layers=options.layers, max_document_length=options.max_length
    ).save(model)
    data = options.data or data_folders(folder)
    own = measured([sys.executable, "-c", BASELINE, str(model)])
    steps: dict[str, Any] = {"the model alone": own}
    tokens, embeddings = folder / "tokens", folder / "embeddings"

    def step(name: str, *command: object, lines: Iterator[str] | None = None) -> dict[str, Any]:
        print(name, file=sys.stderr, flush=True)
        cli = [sys.executable, "-m", "ance_fast.cli.main", *map(str, command), "--json"]
        steps[name] = measured(cli, lines)
        for kind in ("peak_mb", "peak_private_mb"):
            steps[name][f"{kind}_above_model"] = round(steps[name][kind] - own[kind], 1)
        return dict(steps[name]["result"])

    made = step("tokenize", "tokenize", "-", "-m", model, "-o", tokens, lines=passages(data, options.passages))
    step("encode", "encode", tokens, "-m", model, "-o", embeddings)
    queries = [path for path in data if (Path(path) / "queries.jsonl.gz").exists()]
    for factory in options.factories:
        index, answers = folder / f"index-{factory}", folder / "answers.trec"
        kind = ("--on-disk",) if factory == "on-disk" else ("-f", factory)
        step(f"index {factory}", "index", embeddings, "-o", index, *kind)
        for path in queries:
            name = f"search {factory}, queries of {Path(path).name}"
            step(name, "search", index, "-m", model, "--queries", path, "-o", answers, "-k", 100)
    return {
        "system": results.describe_system(sys.argv[1:], os.cpu_count() or 1, {}),
        "passages": made["passages"],
        "max_length": options.max_length,
        "layers": options.layers,
        "steps": steps,
    }


def data_folders(folder: Path) -> list[str]:
    found = sorted(str(path) for path in SHARED.glob("*") if (path / "corpus.jsonl.gz").exists())
    if not found:
        write_data(folder / "data", None)
        found = [str(folder / "data")]
    return found


def passages(data: Sequence[str], wanted: int | None) -> Iterator[str]:
    """JSON lines of all corpora, repeated with changed ids until `wanted`; once each by default."""
    done = copy = 0
    while True:
        for path in data:
            for document in load_corpus(path):
                name = f"{Path(path).name}/{document.id}" + (f"#{copy}" if copy else "")
                yield json.dumps({"_id": name, "title": document.title, "text": document.text}) + "\n"
                done += 1
                if done == wanted:
                    return
        copy += 1
        if wanted is None:
            return


def measured(command: Sequence[str], lines: Iterator[str] | None = None) -> dict[str, Any]:
    """Seconds, peak memory (MB; "private" leaves out mapped files) and printed JSON of a command fed with `lines`."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE if lines is not None else subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    peak = {"VmHWM": 0.0, "RssAnon": 0.0}
    watcher = threading.Thread(target=watch, args=(process, peak), daemon=True)
    watcher.start()
    if lines is not None:
        assert process.stdin is not None
        process.stdin.writelines(lines)
        process.stdin.close()
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait()
    watcher.join()
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    result = json.loads(output.splitlines()[-1]) if output.strip() else {}
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_mb": round(peak["VmHWM"], 1),
        "peak_private_mb": round(peak["RssAnon"], 1),
        "result": result,
    }


def watch(process: subprocess.Popen[str], peak: dict[str, float]) -> None:
    """Keep the highest memory of a process in MB, looked at 50 times a second: all of it, and without mapped files.

    Not `ru_maxrss`, which a child inherits from whoever started it.
    """
    while process.returncode is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return
        fields = dict(line.split(":", 1) for line in status.splitlines())
        for name in peak.keys() & fields.keys():
            peak[name] = max(peak[name], int(fields[name].split()[0]) / 1024)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
