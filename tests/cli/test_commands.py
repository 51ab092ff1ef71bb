"""The commands as a user types them, one after the other, on real text.

They run in processes forked from a warm one; the one that is interrupted starts as a user's does.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ance_fast.data import read_beir, read_jsonl, read_run
from ance_fast.data.ance_files import newest_ann_generation

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(warm: Run) -> Run:
    """`run("index", ..., status=0, stdin=None)`: `ance-fast index ...`, which has to end with this status."""

    def ended(*arguments: object, status: int = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        result = warm("-m", "ance_fast.cli.main", *arguments, stdin=stdin)
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr
        return result

    return ended


def last_json(result: subprocess.CompletedProcess[str]) -> dict[str, object]:
    value: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return value


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> Path:
    return tiny("Bert", num_hidden_layers=1)


def test_tokenize_encode_index_and_search_work_one_after_the_other(
    run: Run, model: Path, wiki: Path, tmp_path: Path
) -> None:
    tokens, embeddings, index = tmp_path / "tokens", tmp_path / "embeddings", tmp_path / "index"
    made = last_json(run("tokenize", f"beir:{wiki}", "-m", model, "-o", tokens, "--max-length", 40, "--json"))
    assert made["passages"] == 400
    encoded = last_json(run("encode", tokens, "-m", model, "-o", embeddings, "--json"))
    assert (encoded["passages"], encoded["dim"]) == (400, 32)
    exact = last_json(run("index", embeddings, "-o", tmp_path / "exact", "--on-disk", "--json"))
    assert exact["backend"] == "exact"
    assert set(exact["seconds"]) == {"add", "write"}
    built = run("index", embeddings, "-o", index, "-f", "HNSW16", "--json")
    assert "HNSW16 over 400 vectors of" in built.stderr
    approximate = last_json(built)
    assert approximate["vectors"] == 400
    assert approximate["recall@10"] > 0.9
    assert set(approximate["seconds"]) == {"train", "add", "write", "check"}
    found = run("search", index, "-m", model, "--store", tokens, "-k", 3, "--json", stdin="a river\n\nan emperor\n")
    answers = [json.loads(line) for line in found.stdout.splitlines()]
    assert [answer["query"] for answer in answers] == ["a river", "an emperor"]
    for answer in answers:
        assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
        assert all(hit["text"] for hit in answer["hits"])
        assert answer["milliseconds"] < 1000
    cased = ("--text-preset", "dpr,lower_case=false")
    for command in (("search", index, "a river"), ("mine", wiki, "--index", embeddings, "-o", tmp_path / "n.jsonl")):
        refused = run(*command, "-m", model, *cased, status=1).stderr
        assert "leave --text-preset out" in " ".join(refused.split())
    shown = run("search", index, "a river", "-m", model, "--store", tokens, "-k", 1).stdout
    assert answers[0]["hits"][0]["id"] in shown


def test_tokenize_takes_a_pipe_and_only_what_is_new(run: Run, model: Path, tmp_path: Path) -> None:
    lines = [f"d{number}\ta river and number {number}\n" for number in range(30)]
    arguments = ("-m", model, "-o", tmp_path / "t", "--num-proc", 1, "--json")
    first = last_json(run("tokenize", "-", *arguments, stdin="".join(lines)))
    assert first["tokenised"] == {"passages": 30, "tokens": first["tokens"]}
    assert first["seconds"] > 0
    assert first["passages_per_second"] == pytest.approx(30 / first["seconds"])
    assert first["tokens_per_second"] == pytest.approx(first["tokens"] / first["seconds"])
    again = run("tokenize", "tsv:-", *arguments, stdin="".join(lines))
    found = last_json(again)
    assert found["tokenised"] == {"passages": 0, "tokens": 0}
    assert (found["passages_per_second"], found["tokens_per_second"]) == (None, None)
    assert "/s" not in again.stderr
    shown = run("tokenize", "tsv:-", *arguments[:-1], stdin="".join(lines))
    assert "nothing new to tokenise" in shown.stdout
    bad = run("tokenize", "-", "-m", model, "-o", tmp_path / "x", stdin="d\tone\nno tab\n", status=1)
    assert "/dev/stdin:2: expected 2 columns" in bad.stderr


def test_index_from_a_corpus_and_a_file_of_queries(run: Run, model: Path, wiki: Path, tmp_path: Path) -> None:
    index, answers = tmp_path / "index", tmp_path / "answers.trec"
    run("index", wiki, "-m", model, "-o", index)  # filled while the corpus is encoded
    made = last_json(run("index", wiki, "-m", model, "-o", tmp_path / "lists", "-f", "IVF4,Flat", "--json"))
    assert made["vectors"] == 400
    assert 0 < made["recall@10"] <= 1  # type: ignore[operator]
    common = ("-m", model, "--queries", wiki, "--split", "test", "-k", 7, "--json")
    done = last_json(run("search", index, *common, "-o", answers))
    lines = answers.read_text().splitlines()
    assert len(lines) == 7 * done["queries"]  # type: ignore[operator]
    assert {row["stage"] for row in done["stages"]} >= {"tokenise", "forward", "search", "write"}  # type: ignore[attr-defined,union-attr]
    run("search", tmp_path / "lists", *common, "--params", "nprobe=4", "-o", tmp_path / "all.trec")
    assert [line.split()[:4] for line in (tmp_path / "all.trec").read_text().splitlines()] == [
        line.split()[:4] for line in lines
    ]
    typed = run("search", index, "-m", model, "--queries", "tsv:-", "-o", answers, stdin="q7\ta river\n")
    assert "1 queries" in typed.stdout
    assert answers.read_text().startswith("q7 Q0 ")
    before = (tmp_path / "index.tokens" / "manifest.json").read_bytes()
    changed = tmp_path / "changed.tsv"
    changed.write_text("d\tanother corpus\n")
    for arguments in (
        ("index", changed, "-o", index),
        ("encode", changed, "-o", tmp_path / "index.embeddings", "--int8"),
    ):
        assert "made from another corpus" in run(*arguments, "-m", model, status=1).stderr
    assert (tmp_path / "index.tokens" / "manifest.json").read_bytes() == before
    assert not (tmp_path / "index.embeddings.tokens").exists()
    assert "go together" in run("search", index, "a river", "-m", model, "--queries", wiki, status=2).stderr
    assert "nprobe=64" in run("search", index, "x", "-m", model, "--params", "nprobe", status=2).stderr


def test_documents_in_chunks_are_found_as_documents(run: Run, model: Path, wiki: Path, tmp_path: Path) -> None:
    rules, index = ("--chunks", "ours,length=24,count=3"), tmp_path / "index"
    cosine = ("--metric", "cosine")  # by which `rank` compares for this model
    built = last_json(run("index", wiki, "-m", model, "-o", index, *rules, *cosine, "--json"))
    assert built["document_separator"] == "#"
    assert built["vectors"] > 400  # type: ignore[operator]
    run("search", index, "-m", model, "--queries", wiki, "--split", "test", "-k", 50, "-o", tmp_path / "found.trec")
    run("rank", wiki, "-m", model, "--split", "test", "-k", 50, *rules, "-o", tmp_path / "ranked.trec")
    assert [path.name for path in tmp_path.glob("*ranked*")] == ["ranked.trec"]  # its tokens went
    found, ranked = read_run(tmp_path / "found.trec"), read_run(tmp_path / "ranked.trec")
    corpus = {document.id: document for document in read_beir(wiki, "test").corpus}
    assert found.keys() == ranked.keys()
    for query, hits in found.items():
        assert len(hits) == 50
        assert hits.keys() <= corpus.keys()
        assert list(hits.values()) == pytest.approx(list(ranked[query].values()), abs=1e-4)
    tokens = tmp_path / "index.tokens"
    shown = last_json(run("search", index, "a river", "-m", model, "--store", tokens, "-k", 3, "--json"))
    assert [hit["text"] for hit in shown["hits"]] == [corpus[hit["id"]].text for hit in shown["hits"]]  # type: ignore[attr-defined]


def test_encode_goes_on_and_refuses_to_mix(run: Run, model: Path, wiki: Path, tmp_path: Path) -> None:
    embeddings = tmp_path / "embeddings"
    first = last_json(run("encode", wiki, "-m", model, "-o", embeddings, "--shard-rows", 150, "--json"))
    assert (first["rows"], first["passages"], first["padding"]) == (400, 400, 0)
    assert first["limiting_stage"] in {row["stage"] for row in first["stages"]}  # type: ignore[attr-defined,union-attr]
    assert {row["threads"] for row in first["stages"] if row["stage"] == "forward"} == {1}  # type: ignore[attr-defined]
    again = run("encode", wiki, "-m", model, "-o", embeddings, "--json")
    assert [last_json(again)[name] for name in ("passages", "passages_per_s", "tokens_per_s")] == [0, None, None]
    shown = run("encode", wiki, "-m", model, "-o", embeddings)
    assert "0 of them new" in shown.stdout
    for text in (again.stderr, shown.stderr):
        assert "400 passages, nothing new" in text
        assert "/s" not in text
    refused = run("encode", wiki, "-m", model, "-o", embeddings, "--dtype", "float16", "--centre", status=1)
    assert "--no-resume" in refused.stderr
    eight_bits = run("encode", wiki, "-m", model, "-o", embeddings, "--int8", status=1).stderr
    assert "top-10 overlap with float32" in eight_bits
    assert "precision 'float32', now 'int8'" in eight_bits
    arguments = ("--dtype", "float16", "--centre", "--no-resume", "--json")
    assert last_json(run("encode", wiki, "-m", model, "-o", embeddings, *arguments))["dtype"] == "float16"


def test_train_search_and_evaluate(run: Run, model: Path, wiki: Path, tmp_path: Path) -> None:
    common = ("-m", model, "--max-steps", 4, "--batch-size", 8, "--max-document-length", 32, "--test-split", "test")
    result = last_json(
        run("train", wiki, "-o", tmp_path / "a", *common, "--refresh-every", 2, "--dev-split", "dev", "--json")
    )
    assert "Dev queries" in Path(str(result["report"])).read_text()
    assert set(result["dev"]) >= {"nDCG@10", "RR@10", "R@100"}  # type: ignore[arg-type]
    alone = ("--refresh", "none", "--start", "random", "--encode-tokens", 256)
    judged = tmp_path / "judged.tsv"
    first = next(iter(read_beir(wiki, split="train").queries))
    judged.write_text("".join(f"{first} 0 {document.id} 1\n" for document in read_beir(wiki, split="train").corpus))
    shown = run("train", wiki, "-o", tmp_path / "b", *common, *alone, "--judged", judged, "--logging-steps", 1).stdout
    assert f"Report: {tmp_path / 'b' / 'report.html'}" in shown
    assert "False negatives" in Path(str(last_json(run("report", tmp_path / "b", "--json"))["report"])).read_text()
    hits = last_json(run("search", tmp_path / "a", "a river in Africa", "--json"))["hits"]
    assert len(hits) == 5  # type: ignore[arg-type]
    runs = (tmp_path / "a" / "test.trec", tmp_path / "b" / "test.trec")
    rows = json.loads(run("evaluate", *runs, "-q", wiki / "qrels" / "test.tsv", "--json").stdout)
    assert rows[0]["nDCG@10"] == pytest.approx(result["test"]["nDCG@10"])  # type: ignore[index]
    assert 0 <= rows[1]["p_value"] <= 1
    run("train", wiki, "-o", tmp_path / "a", *common, status=2)
    again = last_json(run("rank", wiki, "-o", tmp_path / "again.trec", "-m", tmp_path / "a" / "final", "--json"))
    assert again["nDCG@10"] == pytest.approx(result["test"]["nDCG@10"], abs=1e-3)  # type: ignore[index]
    bm25 = last_json(run("bm25", wiki, "-o", tmp_path / "bm25.trec", "--json"))
    assert bm25["nDCG@10"] > again["nDCG@10"]  # type: ignore[operator]


def test_a_warm_up_on_triples_and_then_triples_of_the_index(run: Run, model: Path, wiki: Path, tmp_path: Path) -> None:
    file = tmp_path / "triples.tsv"
    file.write_text("a river\tThe Nile is a river.\tA fox.\na fox\tA fox.\tA war.\n", encoding="utf-8")
    common = ("--batch-size", 4, "--max-document-length", 16, "--loss", "pairwise", "--optimizer", "lamb")
    warm_up = ("train", f"triples:{file}", "-m", model, "-o", tmp_path / "warm-up", "--max-steps", 2, *common)
    assert "--dev-data says which" in run(*warm_up, "--dev-split", "dev", status=2).stderr
    unmeasured = ("--dev-data", wiki, "--test-split", "test", "--no-full-ranking", "--dev-candidates", file)
    assert "--no-full-ranking never encodes" in run(*warm_up, *unmeasured, status=2).stderr
    assert "not order='queries'" in run(*warm_up, "--order", "queries", status=2).stderr
    dev = ("--dev-data", wiki, "--dev-split", "dev", "--test-split", "test", "--measure-every", 1, "--json")
    result = last_json(run(*warm_up, *dev))
    assert set(result["dev"]) >= {"nDCG@10", "RR@10"}  # type: ignore[arg-type]
    assert set(result["test"]) >= {"nDCG@10", "RR@10"}  # type: ignore[arg-type]
    lines = (tmp_path / "warm-up" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines if "eval_RR@10" in line] == [1, 2]
    order = (
        "--order",
        "triples",
        "--query-chunks",
        2,
        "--triples-per-query",
        2,
        "--positives",
        "last",
        "--start",
        "index",
    )
    rate = ("--warmup", "refresh", "--warmup-steps", 1, "--lr-scheduler", "cosine", "--max-grad-norm", 2)
    encoder = tmp_path / "warm-up" / "final"
    steps = ("--max-steps", 3, "--refresh-every", 2, "--max-query-length", 8)
    shown = run("train", wiki, "-m", encoder, "-o", tmp_path / "run", *common, *order, *rate, *steps)
    assert "Search it" in shown.stdout
    assert len(list((tmp_path / "run" / "generations").iterdir())) == 2


def test_mined_negatives_are_trained_on_evaluated_and_handed_over(
    run: Run, model: Path, wiki: Path, tmp_path: Path
) -> None:
    lines, exact = tmp_path / "n.jsonl", tmp_path / "top.trec"
    common = ("mine", wiki, "-m", model, "--json")
    first = last_json(run(*common, "-o", lines, "--negatives", 3, "--topk", 30, "--relative-margin", 0.001))
    assert first["negatives"] <= 3 * first["queries"]  # type: ignore[operator]
    assert first["removed"]["relative_margin"] > 0  # type: ignore[index]
    assert {row["stage"] for row in first["stages"]} >= {"tokenise", "forward", "search", "write"}  # type: ignore[attr-defined,union-attr]
    mined = read_jsonl(lines).negatives or {}
    judged = read_beir(wiki, split="train").qrels
    assert sum(map(len, mined.values())) == first["negatives"]
    assert all(judged[query].keys().isdisjoint(negatives) for query, negatives in mined.items())

    embeddings = tmp_path / "n.jsonl.embeddings"
    top = last_json(run(*common, "-o", exact, "--index", embeddings, "--sampling", "top", "--negatives", 4))
    assert (top["negatives"], top["fewer"]) == (4 * top["queries"], 0)  # type: ignore[operator]
    assert {len(negatives) for negatives in read_run(exact).values()} == {4}
    run("index", embeddings, "-o", tmp_path / "index")
    run(*common, "-o", tmp_path / "again.trec", "--index", tmp_path / "index", "--sampling", "top", "--negatives", 4)
    assert {query: list(found) for query, found in read_run(tmp_path / "again.trec").items()} == {
        query: list(found) for query, found in read_run(exact).items()
    }

    generation = tmp_path / "ance" / "ann_training_data_7"
    told = run(*common[:-1], "-o", generation, "--index", embeddings)
    assert "ann_ndcg_7" in told.stdout
    assert "negatives for" in told.stdout
    assert not (tmp_path / "ance" / "ann_ndcg_7").exists()
    announced = last_json(run(*common, "-o", generation, "--index", embeddings, "--dev-split", "dev"))
    number, data, report = newest_ann_generation(tmp_path / "ance")
    assert (number, report.checkpoint, report.metrics) == (7, str(model), {"ndcg": announced["ndcg"]})
    assert len(data.negatives) >= announced["negatives"]  # type: ignore[operator]

    trained = ("-m", model, "-o", tmp_path / "run", "--start", "dataset", "--refresh", "none", "--max-steps", 2)
    run("train", lines, *trained, "--batch-size", 4, "--max-document-length", 16)
    assert (tmp_path / "run" / "final").is_dir()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-o", "{tmp}/negatives"), 2, "add --format jsonl, trec, ance"),
        (("-o", "{tmp}/n.jsonl", "--format", "ance"), 2, "call it ann_training_data_0"),
        (("-o", "{tmp}/n.jsonl", "--format", "xml"), 2, "choose jsonl, trec, ance"),
        (("-o", "{tmp}/n.jsonl", "--dev-split", "dev"), 2, "goes with ann_training_data_N"),
        (("-o", "{tmp}/n.trec", "--scores"), 2, "--scores is for jsonl"),
        (("-o", "{tmp}/n.trec", "--negatives", 30, "--topk", 20), 2, "only 20 candidates"),
        (("-o", "{tmp}/n.trec", "--index", "{tmp}/none"), 1, "none: no such folder"),
        (("-o", "{tmp}/n.trec", "--index", "{wiki}"), 1, "holds a demo data"),
        (("-o", "{tmp}/n.trec", "--metric", "l2"), 2, "choose ip or cosine"),
        (("-o", "{tmp}/n.trec", "--sampling", "best"), 2, "choose top or random"),
    ],
)
def test_mining_refuses_what_it_cannot_do_and_leaves_no_file(
    run: Run, model: Path, wiki: Path, tmp_path: Path, arguments: tuple[object, ...], status: int, message: str
) -> None:
    filled = [str(a).format(wiki=wiki, tmp=tmp_path) for a in arguments]
    assert message in run("mine", wiki, "-m", model, *filled, status=status).stderr
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_the_demo_gives_its_table_its_report_and_an_index_that_answers(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    arguments = ("demo", "-o", folder, "--steps", 5, "--passages", 150, "--json")
    first = last_json(run(*arguments))
    rows = first["rows"]
    assert isinstance(rows, list)
    assert [row["key"] for row in rows] == ["bm25-search", "start", "random", "bm25", "once", "ance"]
    for row in rows:
        assert {"name", "nDCG@10", "RR@10", "R@100", "p_value"} <= row.keys()
    assert first["encoder"]["passages_per_s"] > 0  # type: ignore[index]
    page = ElementTree.parse(str(first["report"])).getroot()
    pictures = [title.text for title in page.iter("{http://www.w3.org/2000/svg}title")]
    assert pictures == ["Dev nDCG@10 at each refresh of ANCE", "Share of the negatives that outscore the positive"]
    assert [row.findtext("th") for row in page.iter("tr")][1:7] == [row["name"] for row in rows]
    hits = last_json(run("search", first["index"], "a war in Europe", "--json"))["hits"]
    assert len(hits) == 5  # type: ignore[arg-type]
    again = run(*arguments)
    assert last_json(again) == first
    assert "--fresh" in again.stderr
    run("demo", "-o", folder, "--steps", 6, status=2)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("search", "nowhere", "q"), 1, "nowhere: no such folder"),
        (("search", ".", "q", "-k", 0), 2, "ask for at least 1 passage"),
        (("tokenize", "beir:nowhere", "-m", "{model}", "-o", "{tmp}/t"), 1, "nowhere"),
        (("encode", "{wiki}", "-m", "./nothing", "-o", "{tmp}/e"), 1, "no such folder"),
        (("index", "{tmp}/nothing", "-o", "{tmp}/i"), 1, "nothing: no such folder"),
        (("train", "{wiki}", "-m", "{model}", "-o", "{tmp}/r", "--loss", "magic"), 2, "choose pairwise, contrastive"),
        (("train", "{wiki}", "-m", "{model}", "-o", "{tmp}/r", "--split", "nope"), 1, "nope"),
        (("train", "{wiki}", "-m", "{model}", "-o", "{tmp}/r", "--candidates", "x"), 2, "give NAME=FILE"),
        (("train", "{wiki}", "-m", "{model}", "-o", "{tmp}/r", "--candidates", "x={tmp}/x"), 1, "x: no such file"),
        (("train", "{wiki}", "-m", "{model}", "-o", "{tmp}/r", "--resume"), 1, "no run to resume"),
        (("train", "{wiki}", "-m", "{model}", "-o", "{tmp}/r", "--judged", "{tmp}/q"), 1, "q: no such file"),
        (("report", "{tmp}/nothing"), 1, "nothing: no such folder"),
        (("report", "{tmp}"), 1, "no training run"),
        (("evaluate", "{tmp}/x.trec", "-q", "{wiki}/qrels/test.tsv"), 1, "x.trec: no such file"),
        (("evaluate",), 2, "Missing argument"),
    ],
)
def test_bad_input_gets_one_message_and_the_right_status(
    run: Run, model: Path, wiki: Path, tmp_path: Path, arguments: tuple[object, ...], status: int, message: str
) -> None:
    filled = [str(a).format(model=model, wiki=wiki, tmp=tmp_path) for a in arguments]
    assert message in run(*filled, status=status).stderr


def test_an_interrupted_training_run_says_so_and_leaves_its_checkpoints(
    model: Path, wiki: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    arguments = ["train", wiki, "-m", model, "-o", output, "--max-steps", 4000, "--refresh-every", 2000]
    arguments += ["--save-every", 2, "--batch-size", 4, "--max-document-length", 16]
    command = [sys.executable, "-m", "ance_fast.cli.main", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A test run in the background inherits "ignore SIGINT", which a command typed at a terminal never does.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=listen)
    deadline = time.monotonic() + 120
    while not list((output / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted at step" in stderr
    assert "Traceback" not in stderr
    assert not (output / "final").exists()
    assert list((output / "checkpoints").glob("step-*"))


def test_a_full_disk_is_one_message_and_leaves_nothing_that_looks_whole(
    warm: Run, model: Path, wiki: Path, tmp_path: Path
) -> None:
    script = tmp_path / "full.py"
    script.write_text(
        "import errno, ance_fast.artifacts as a, ance_fast.cli.main as m\n"
        "def full(path): raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "if __name__ == '__main__':\n"
        "    a.fsync = full\n"
        "    m.main()\n"
    )
    result = warm(script, "tokenize", wiki, "-m", model, "-o", tmp_path / "t")
    assert result.returncode == 1
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "t").exists()


def test_tokenize_writes_the_files_of_microsoft_ance_and_reads_them_again(
    run: Run, model: Path, wiki: Path, tmp_path: Path
) -> None:
    cache, tokens = tmp_path / "preprocessed", tmp_path / "tokens"
    lengths = ("--max-length", 24, "--json")
    written = ("--format", "ance", "--split", "train", "--split", "dev", "--max-query-length", 8)
    first = last_json(run("tokenize", f"beir:{wiki}", "-m", model, "-o", cache, *lengths, *written))
    assert {"passages", "passages_meta", "train-query", "dev-query", "train-qrel.tsv", "dev-qrel.tsv"} <= {
        file.name for file in cache.iterdir()
    }
    second = last_json(run("tokenize", cache, "-m", model, "-o", tokens, *lengths))
    assert (second["passages"], second["tokens"]) == (first["passages"], first["tokens"])
    index, answered, asked = tmp_path / "index", tmp_path / "run.trec", ("-m", model, "-k", 5, "--split", "dev")
    run("index", tokens, "-m", model, "-o", index)
    run("search", index, *asked, "--queries", cache, "-o", answered)
    assert all(len(found) == 5 for found in read_run(answered).values())
    bad = run("tokenize", wiki, "-m", model, "-o", tokens, "--split", "train", status=2)
    assert "only --format ance has a place for" in bad.stderr
    longer = ("--max-length", 600, "--json")
    bad = run("tokenize", wiki, "-m", model, "-o", tmp_path / "long", *longer, status=2)
    assert "--max-length 600: the model takes" in bad.stderr
    maxp = run("tokenize", wiki, "-m", model, "-o", tmp_path / "long", *longer, "--format", "ance", "--split", "dev=x")
    assert last_json(maxp)["max_length"] == 600
    assert (tmp_path / "long" / "x-qrel.tsv").read_bytes() == (cache / "dev-qrel.tsv").read_bytes()
    (tmp_path / "preprocessed.tokens").rename(tmp_path / "gone")
    bad = run("tokenize", wiki, "-m", model, "-o", cache, "--format", "ance", status=1)
    assert "holds other passages" in bad.stderr
    bad = run("tokenize", wiki, "-m", model, "-o", tmp_path / "new", "--format", "ance", "--split", "nope", status=1)
    assert "nope" in bad.stderr
    (tmp_path / "psgs_w100.tsv").write_text("id\ttext\ttitle\n1\tx\ty\n")
    bad = run("tokenize", f"dpr:{tmp_path}", "-m", model, "-o", tmp_path / "new", "--format", "ance", status=2)
    assert "which are not written" in bad.stderr
    assert not list(tmp_path.glob("new*"))
    with open(cache / "passages", "r+b") as file:
        file.truncate(file.seek(0, 2) - 3)
    cut = run("tokenize", cache, "-m", model, "-o", tmp_path / "other", *lengths, status=1)
    assert "the last record has 97 of 100 bytes" in cut.stderr


def test_embeddings_go_to_microsoft_ances_files_and_come_back(
    run: Run, model: Path, wiki: Path, tmp_path: Path
) -> None:
    made, theirs, back, index = (tmp_path / name for name in ("made", "theirs", "back", "index"))
    run("encode", f"beir:{wiki}", "-m", model, "-o", made, "--max-length", 16)
    run("convert-embeddings", made, theirs, "--step", 30, "--ranks", 2)
    assert sorted(file.name for file in theirs.iterdir()) == [
        f"passage_30__{kind}_p__data_obj_{rank}.npy" for kind in ("emb", "embid") for rank in (0, 1)
    ]
    assert "say with --model" in run("convert-embeddings", theirs, back, status=2).stderr
    assert "name it (--cache)" in run("convert-embeddings", made, theirs, "--prefix", "D", status=2).stderr
    assert "leave --model out" in run("convert-embeddings", made, theirs, "-m", model, status=2).stderr
    assert last_json(run("convert-embeddings", theirs, back, "-m", model, "--json"))["rows"] == 400
    run("index", back, "-o", index)
    (theirs / "passage_30__emb_p__data_obj_0.npy").unlink()
    failed = run("convert-embeddings", theirs, tmp_path / "other", "-m", model, status=1)
    assert "passage_30__emb_p__data_obj_0: missing" in failed.stderr
