"""Inputs that are not there are refused before anything that takes seconds to import."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ance_fast.artifacts import staged_artifact
from ance_fast.cli.inputs import refuse_missing_folder, refuse_missing_model
from ance_fast.errors import ArtifactError

HEAVY = {"torch", "transformers", "faiss", "scipy", "datasets", "ir_datasets", "bm25s"}


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "corpus.jsonl").write_text('{"_id": "d", "text": "a river"}\n')
    return tmp_path / "b"


@pytest.mark.parametrize(
    "arguments",
    [
        ("tokenize", "beir:{missing}", "-m", "NAME", "-o", "{out}"),
        ("tokenize", "{beir}", "-m", "{missing}", "-o", "{out}"),
        ("encode", "tsv:{missing}.tsv", "-m", "NAME", "-o", "{out}"),
        ("encode", "{beir}", "-m", "{missing}", "-o", "{out}"),
        ("index", "{missing}", "-o", "{out}"),
        ("index", "{missing}.parquet", "-m", "NAME", "-o", "{out}"),
        ("index", "{beir}", "-m", "{missing}", "-o", "{out}"),
        ("search", "{missing}", "a query"),
        ("search", "{beir}", "a query", "-m", "{missing}"),
        ("search", "{beir}", "a query", "-m", "NAME", "--store", "{missing}"),
        ("search", "{beir}", "-m", "NAME", "--queries", "text:{missing}.txt", "-o", "{out}"),
        ("train", "msmarco:{missing}", "-m", "NAME", "-o", "{out}"),
        ("train", "{beir}", "-m", "{missing}", "-o", "{out}"),
        ("rank", "{missing}", "-m", "NAME", "-o", "{out}"),
        ("rank", "{beir}", "-m", "{missing}", "-o", "{out}"),
        ("bm25", "jsonl:{missing}.jsonl", "-o", "{out}"),
        ("evaluate", "{missing}", "-q", "{beir}/corpus.jsonl"),
        ("evaluate", "{beir}/corpus.jsonl", "-q", "{missing}"),
    ],
    ids=" ".join,
)
def test_a_path_that_is_not_there_is_found_before_the_heavy_imports(
    arguments: tuple[str, ...], beir: Path, tmp_path: Path
) -> None:
    missing, out = tmp_path / "missing", tmp_path / "out"
    filled = [part.format(missing=missing, beir=beir, out=out) for part in arguments]
    command = [sys.executable, "-X", "importtime", "-m", "ance_fast.cli.main", *filled]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert re.search(rf"^ance-fast: error: {missing}.*: no such ", result.stderr, re.MULTILINE)
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "ance_fast.errors" in imported
    assert not imported & HEAVY
    assert not out.exists()


@pytest.mark.parametrize("name", ["./model", "/model", "~/model", "../model", "runs/first/final"])
def test_what_can_only_be_a_path_is_not_taken_for_a_model_of_the_hub(name: str) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        refuse_missing_model(name)


@pytest.mark.parametrize("name", [None, "bert-base-uncased", "intfloat/e5-small-v2", "."])
def test_names_of_the_hub_and_folders_pass(name: str | None) -> None:
    refuse_missing_model(name)


def test_a_checkpoint_may_be_a_file_a_folder_not(beir: Path) -> None:
    refuse_missing_model(str(beir / "corpus.jsonl"))
    with pytest.raises(ArtifactError, match="no such folder or file"):
        refuse_missing_model(str(beir / "model.cp"))
    with pytest.raises(ArtifactError, match="not a folder"):
        refuse_missing_folder(str(beir / "corpus.jsonl"))


def test_a_folder_that_a_killed_replacement_moved_away_is_there(tmp_path: Path) -> None:
    with staged_artifact(tmp_path / "index", "index", {}) as staging:
        (staging / "vectors").write_text("old")
    (tmp_path / "index").rename(tmp_path / ".index.0123abcd.old")
    refuse_missing_folder(tmp_path / "index")
    assert (tmp_path / "index" / "vectors").read_text() == "old"
