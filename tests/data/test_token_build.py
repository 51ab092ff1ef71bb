from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from ance_fast.artifacts import open_artifact
from ance_fast.data import token_build
from ance_fast.data.dataset import Corpus
from ance_fast.data.msmarco import _documents
from ance_fast.data.records import Document
from ance_fast.data.token_build import KIND, build_store
from ance_fast.data.token_store import TokenStore
from ance_fast.errors import ArtifactError, ConfigError, DataError

CORPUS = [Document(f"d{number}", f"the cat sat {number} times", "a dog " * number) for number in range(23)]


def build(corpus, tokenizer, path: Path, **changed) -> TokenStore:
    settings = {"max_length": 12, "shard_rows": 5, **changed}
    return TokenStore.build(corpus, tokenizer, path, **settings)


def files(folder: Path) -> dict[str, tuple[tuple[int, int], bytes]]:
    """Name -> ((inode, time), content): a file written anew differs even where its content is the same."""
    return {file.name: ((file.stat().st_ino, file.stat().st_mtime_ns), file.read_bytes()) for file in folder.iterdir()}


def broken_after(count: int, error: BaseException) -> Iterator[Document]:
    yield from CORPUS[:count]
    raise error


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / ".store.building"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_the_manifest_tells_what_the_store_holds(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    store = build(CORPUS, tokenizer, path)
    manifest = open_artifact(path, KIND)
    lengths = [len(tokenizer(document.full_text)["input_ids"]) for document in CORPUS]
    assert manifest["rows"] == 23
    assert manifest["tokens"] == sum(min(length, 12) for length in lengths) == store.num_tokens
    assert manifest["truncated"] == sum(length > 12 for length in lengths) > 0
    assert [shard["rows"] for shard in manifest["shards"]] == [5, 5, 5, 5, 3]
    assert (manifest["max_length"], manifest["prompt"], manifest["dtype"]) == (12, "", "uint16")
    assert manifest["vocab_size"] == len(tokenizer)
    assert sorted(manifest["files"]) == [f"tokens-0000{number}.arrow" for number in range(5)]


def test_several_processes_write_the_same_bytes_as_one(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    build(CORPUS, tokenizer, tmp_path / "one")
    build(iter(CORPUS), tokenizer, tmp_path / "two", num_proc=2)
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert {name: content for name, (_, content) in one.items()} == {
        name: content for name, (_, content) in two.items()
    }
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize("error", [RuntimeError("stream broke"), KeyboardInterrupt(), DataError("f:3: bad")])
def test_an_interrupted_build_goes_on_from_its_whole_shards(
    tokenizer: PreTrainedTokenizerFast, path: Path, work: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        build(broken_after(17, error), tokenizer, path)
    assert not path.exists()
    with pytest.raises(ArtifactError):
        TokenStore.open(path)
    kept = files(work)
    assert sorted(kept) == ["tokens-00000.arrow", "tokens-00001.arrow", "tokens-00002.arrow"]
    (work / ".tokens-00003.arrow.0123abcd.tmp").write_text("half a shard")
    build(CORPUS, tokenizer, path)
    assert not work.exists()
    finished = files(path)
    assert {name: finished[name] for name in kept} == kept, "kept as they were, not written again"
    assert sorted(open_artifact(path, KIND)["files"]) == [f"tokens-0000{number}.arrow" for number in range(5)]
    reference = build(CORPUS, tokenizer, path.with_name("fresh"))
    assert {name: content for name, (_, content) in finished.items()} == {
        name: content for name, (_, content) in files(path.with_name("fresh")).items()
    }
    assert len(reference) == 23


def test_shards_of_another_corpus_or_other_settings_are_not_kept(
    tokenizer: PreTrainedTokenizerFast, path: Path, work: Path
) -> None:
    with pytest.raises(RuntimeError):
        build(broken_after(17, RuntimeError()), tokenizer, path)
    kept = files(work)
    changed = [*CORPUS[:7], CORPUS[7]._replace(text="the dog"), *CORPUS[8:]]
    store = build(changed, tokenizer, path)
    finished = files(path)
    same = [name for name in kept if finished[name] == kept[name]]
    assert same == ["tokens-00000.arrow", "tokens-00002.arrow"]
    assert store.document(7).text == "the dog"

    for name, settings in {"length": {"max_length": 9}, "prompt": {"prompt": "query: "}}.items():
        target = path.with_name(name)
        with pytest.raises(RuntimeError):
            build(broken_after(17, RuntimeError()), tokenizer, target)
        store = build(CORPUS, tokenizer, target, **settings)
        for row, document in enumerate(CORPUS):
            text = settings.get("prompt", "") + document.full_text
            limit = settings.get("max_length", 12)
            assert store.tokens(row).tolist() == tokenizer(text, truncation=True, max_length=limit)["input_ids"]


def test_a_damaged_shard_of_an_interrupted_build_is_made_again(
    tokenizer: PreTrainedTokenizerFast, path: Path, work: Path
) -> None:
    with pytest.raises(RuntimeError):
        build(broken_after(17, RuntimeError()), tokenizer, path)
    damaged = bytearray((work / "tokens-00001.arrow").read_bytes())
    offset = damaged.index(b"the cat sat 7 times")
    damaged[offset] ^= 1
    (work / "tokens-00001.arrow").write_bytes(bytes(damaged))
    assert build(CORPUS, tokenizer, path).document(7) == CORPUS[7]


def test_a_complete_store_is_opened_and_not_built_again(
    tokenizer: PreTrainedTokenizerFast, path: Path, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(CORPUS, tokenizer, path)
    before = files(path)
    with caplog.at_level(logging.INFO):
        assert len(build(iter(CORPUS), tokenizer, path)) == 23
    assert files(path) == before
    assert "already holds this corpus" in caplog.text
    assert not work.exists()


def test_a_grown_or_shrunk_corpus_replaces_the_store_and_keeps_equal_shards(
    tokenizer: PreTrainedTokenizerFast, path: Path, work: Path
) -> None:
    build(CORPUS[:20], tokenizer, path)
    before = files(path)
    assert len(build(CORPUS, tokenizer, path)) == 23
    grown = files(path)
    assert all(grown[name] == entry for name, entry in before.items() if name != "manifest.json")
    shrunk = build(CORPUS[:10], tokenizer, path)
    assert list(shrunk.ids) == [document.id for document in CORPUS[:10]]
    assert sorted(files(path)) == ["manifest.json", "tokens-00000.arrow", "tokens-00001.arrow"]
    assert not work.exists()


def test_other_row_counts_and_texts_left_out_rebuild_the_store(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    build(CORPUS, tokenizer, path)
    assert len(build(CORPUS, tokenizer, path, shard_rows=23).shards) == 1
    without = build(CORPUS, tokenizer, path, shard_rows=23, keep_text=False)
    assert len(without) == 23
    with pytest.raises(ArtifactError, match="keep_text=False"):
        without.document(0)


def test_a_store_of_other_settings_is_refused_and_left_alone(
    tokenizer: PreTrainedTokenizerFast, other_tokenizer: PreTrainedTokenizerFast, path: Path, work: Path
) -> None:
    build(CORPUS, tokenizer, path)
    before = files(path)
    with pytest.raises(ArtifactError, match=r"built with tokenizer '\w+', now '\w+'; choose another path or remove it"):
        build(CORPUS, other_tokenizer, path)
    with pytest.raises(ArtifactError, match="built with max_length 12, now 13"):
        build(CORPUS, tokenizer, path, max_length=13)
    with pytest.raises(ArtifactError, match="built with prompt '', now 'x'"):
        build(CORPUS, tokenizer, path, prompt="x")
    assert files(path) == before
    assert not work.exists()


def test_a_damaged_store_is_mended(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    build(CORPUS, tokenizer, path)
    before = files(path)
    (path / "tokens-00002.arrow").unlink()
    assert list(build(CORPUS, tokenizer, path).ids) == [document.id for document in CORPUS]
    after = files(path)
    assert set(after) == set(before)
    assert after["tokens-00002.arrow"][1] == before["tokens-00002.arrow"][1]
    assert [name for name in before if before[name] != after[name] and name != "manifest.json"] == [
        "tokens-00002.arrow"
    ]
    whole = bytearray((path / "tokens-00001.arrow").read_bytes())
    whole[whole.index(b"the cat sat 7 times")] ^= 1
    (path / "tokens-00001.arrow").write_bytes(bytes(whole))
    build(CORPUS, tokenizer, path)
    assert TokenStore.open(path, verify=True).document(7) == CORPUS[7]


def test_something_else_at_the_path_is_refused_and_left_alone(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    path.mkdir()
    (path / "precious.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="exists and is not a token store"):
        build(CORPUS, tokenizer, path)
    assert (path / "precious.txt").read_text() == "mine"


def test_an_empty_corpus_is_refused_and_leaves_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the corpus is empty"):
        build([], tokenizer, tmp_path / "store")
    assert not list(tmp_path.iterdir())
    (tmp_path / "collection.tsv").touch()
    with pytest.raises(DataError, match=r"collection\.tsv: the corpus is empty"):
        build(Corpus(tmp_path / "collection.tsv", _documents), tokenizer, tmp_path / "store")


def test_a_duplicate_id_is_refused(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    with pytest.raises(DataError, match="document id 'd3' comes twice"):
        build([*CORPUS, CORPUS[3]], tokenizer, path)
    assert not path.exists()


@pytest.mark.parametrize("settings", [{"num_proc": 0}, {"shard_rows": 0}, {"max_length": 2}])
def test_senseless_settings_are_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, settings: dict[str, int]
) -> None:
    with pytest.raises(ConfigError):
        build(CORPUS, tokenizer, tmp_path / "store", **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_full_disk_names_the_file_and_the_build_goes_on_later(
    tokenizer: PreTrainedTokenizerFast, path: Path, work: Path, num_proc: int
) -> None:
    large = [*CORPUS[:20], *(Document(f"big{number}", "cat " * 20_000) for number in range(3))]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # workers inherit it
    try:
        with pytest.raises(OSError, match=r"could not write the token shard.*tokens-00004\.arrow"):
            build(large, tokenizer, path, num_proc=num_proc)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()
    assert sorted(files(work)) == [f"tokens-0000{number}.arrow" for number in range(4)]
    assert len(build(large, tokenizer, path)) == 23


def test_a_second_build_of_the_same_store_at_once_is_refused(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    def corpus() -> Iterator[Document]:
        yield from CORPUS[:10]
        with pytest.raises(ArtifactError, match="another process is building it"):
            build(CORPUS, tokenizer, path)
        yield from CORPUS[10:]

    assert len(build(corpus(), tokenizer, path)) == 23


def test_few_documents_are_in_memory_at_once(
    tokenizer: PreTrainedTokenizerFast, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = written = 0

    def corpus() -> Iterator[Document]:
        nonlocal read
        for number in range(40_000):
            read += 1
            assert read - written <= 1024 + 2 * 500
            yield Document(str(number), "a cat")

    write = token_build._write

    def counted(documents, *rest):
        nonlocal written
        written += documents.rows
        return write(documents, *rest)

    monkeypatch.setattr(token_build, "_write", counted)
    assert len(build(corpus(), tokenizer, path, shard_rows=500)) == 40_000


def test_progress_goes_to_standard_error(
    tokenizer: PreTrainedTokenizerFast, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(CORPUS, tokenizer, path, show_progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tokenising: 23 passages" in err
    assert "passages/s" in err
    assert "tokens/s" in err


SCRIPT = """
import os, signal, sys
from tokenizers import Tokenizer, models, pre_tokenizers
from ance_fast.data import TokenStore

class Small:
    name_or_path = "small"
    def __init__(self):
        self.backend_tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1, "sat": 2}, unk_token="[UNK]"))
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    def __len__(self):
        return 3
    def num_special_tokens_to_add(self, pair=False):
        return 0
    def __call__(self, texts, truncation=True, max_length=None):
        self.backend_tokenizer.enable_truncation(max_length)
        return {"input_ids": [encoding.ids for encoding in self.backend_tokenizer.encode_batch(texts)]}

def corpus(kill_at):
    for number in range(40):
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        yield str(number), "cat sat " * number

if __name__ == "__main__":
    store = TokenStore.build(corpus(int(sys.argv[2])), Small(), sys.argv[1], max_length=64, shard_rows=10, num_proc=1)
    print(len(store), store.num_tokens)
"""


def test_a_killed_build_leaves_nothing_that_passes_for_whole_and_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}

    def run(kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(tmp_path / "store"), str(kill_at)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert run(35).returncode == -signal.SIGKILL
    assert not (tmp_path / "store").exists()
    kept = files(tmp_path / ".store.building")
    assert len(kept) == 3
    finished = run(-1)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["40", str(sum(min(2 * number, 64) for number in range(40)))]
    after = files(tmp_path / "store")
    assert {name: after[name] for name in kept} == kept


MEMORY_SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from build import Small
from ance_fast.data import TokenStore

def megabytes(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(entry)).split()[1]) / 1024

def corpus(count):
    for number in range(count):
        yield f"document-{number:012d}", f"{number:08d}" * 256

def build(name, count):
    return TokenStore.build(corpus(count), Small(), f"{sys.argv[1]}/{name}", max_length=64, keep_text=False)

if __name__ == "__main__":
    build("warm", 10)
    before = megabytes("VmRSS")
    store = build("large", 60_000)
    assert len(store.ids) == 60_000
    print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text(SCRIPT)
    (tmp_path / "memory.py").write_text(MEMORY_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, str(tmp_path / "memory.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    # 123 MB of text went through; a slice of the stream has 32 MiB of it.
    assert float(result.stdout) < 150


def test_the_path_may_be_relative(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"prompt": "", "num_proc": 1, "shard_rows": 9, "keep_text": True, "show_progress": False}
    assert build_store(CORPUS, tokenizer, "sub/../x", max_length=8, **settings)[0] == tmp_path / "x"
    assert json.loads((tmp_path / "x" / "manifest.json").read_text())["rows"] == 23
