"""Jobs that fill a directory of shards: one process or several, killed or not, with the same bytes at the end."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ance_fast import crash_points
from ance_fast.artifacts import MANIFEST
from ance_fast.data import TokenStore
from ance_fast.encoding import EmbeddingShards, shard_job
from ance_fast.encoding.claims import Claim
from ance_fast.encoding.shard_job import ShardJob
from ance_fast.errors import ArtifactError, ConfigError, DataError

DIM = 6
SETTINGS = {"fingerprint": "model-a", "pooling": {"mode": "cls"}, "max_length": 16}

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    """A killed process loses nothing that the kernel has: waiting for the device would only make these tests slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def vectors(store: TokenStore, start: int, stop: int) -> np.ndarray:
    """What stands for an encoder: float32 [stop - start, DIM] computed from the tokens alone, far from the origin."""
    tokens = [store.tokens(row).astype(np.float64) for row in range(start, stop)]
    rows = [[100 + np.sin(row * (column + 1)).sum() for column in range(DIM)] for row in tokens]
    return np.array(rows, dtype=np.float32)


def work_on(job: ShardJob, store: TokenStore, pause: float = 0.0, log: Path | None = None) -> EmbeddingShards:
    for shard in job.claim():
        with job.writer(shard) as out:
            if log is not None:
                with open(log, "a") as file:
                    file.write(f"{shard.number}\n")
            middle = (shard.start + shard.stop) // 2
            out.write(vectors(store, shard.start, middle))
            time.sleep(pause)
            out.write(vectors(store, middle, shard.stop))
    return job.finish()


def encode(
    out: Path, store: TokenStore, log: Path | None = None, pause: float = 0.0, **options: object
) -> EmbeddingShards:
    arguments: dict = {"dim": DIM, "shard_rows": 10, "stale_after": 2.0, **options}
    settings = {**SETTINGS, **arguments.pop("settings", {})}
    with ShardJob.enter(out, settings, store, **arguments) as job:
        return work_on(job, store, pause, log)


def centred(
    out: Path, store: TokenStore, log: Path | None = None, pause: float = 0.0, **options: object
) -> EmbeddingShards:
    """`encode` with everything a job can have."""
    everything: dict = {
        "dtype": "float16",
        "centre": lambda: vectors(store, 0, 10).mean(axis=0),
        "budget": lambda: {"tokens": 1024},
    }
    return encode(out, store, log, pause, **{**everything, **options})


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.blake2b(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "log")


@contextmanager
def forked(run: Callable[[], object]) -> Iterator[int]:
    """A process that runs `run`; yields its id, kills it at the end if it still runs."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ChildProcessError, ProcessLookupError):
            pass


def status_of(run: Callable[[], object]) -> int:
    """Exit status of `run` in a process of its own: 0, 1 after an exception, -9 when it was killed."""
    with forked(run) as pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lines(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


# --- one process ------------------------------------------------------------------------------------------------------


def test_a_job_fills_a_directory_with_rows_in_corpus_order(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    store = word_store(35)
    shards = encode(tmp_path / "out", store)
    np.testing.assert_array_equal(shards.read(), vectors(store, 0, 35))
    assert list(shards.ids) == list(store.ids)
    assert [(start, len(block)) for start, block in shards.stored()] == [(0, 10), (10, 10), (20, 10), (30, 5)]
    assert shards.fingerprint == "model-a"
    assert shards.manifest["settings"] == SETTINGS
    assert left_behind(tmp_path) == ["out"]
    assert sorted(hashes(tmp_path / "out")) == [*(f"embeddings-0000{n}.npy" for n in range(4)), "ids.arrow", MANIFEST]
    assert EmbeddingShards.open(tmp_path / "out", fingerprint="model-a", verify=True).manifest == shards.manifest


def test_the_same_again_opens_what_is_there(word_store: Callable[..., TokenStore], tmp_path: Path) -> None:
    store = word_store(35)
    centred(tmp_path / "out", store)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with ShardJob.enter(
        tmp_path / "out",
        SETTINGS,
        store,
        dim=DIM,
        dtype="float16",
        shard_rows=7,
        centre=lambda: pytest.fail("centred again"),
        budget=lambda: pytest.fail("measured again"),
    ) as job:
        assert not list(job.claim())
        assert job.budget == {"tokens": 1024}
        assert job.mean is not None
        assert [(start, stop) for start, stop, _ in job.finished] == [(0, 10), (10, 20), (20, 30), (30, 35)]
        assert all(path.parent == tmp_path / "out" for _, _, path in job.finished)
        assert len(job.finish()) == 35
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_what_is_made_does_not_depend_on_how_the_token_store_is_cut(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    store = word_store(35)
    cut = [batch.slice(start, 8) for batch in store._batches for start in range(0, 35, 8)]
    encode(tmp_path / "a", store)
    encode(tmp_path / "b", TokenStore(cut, store.manifest))
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_float16_keeps_more_of_a_centred_vector_and_the_order_of_inner_products(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    store = word_store(100)
    exact = vectors(store, 0, 100)
    plain = encode(tmp_path / "plain", store, dtype="float16")
    shards = centred(tmp_path / "centred", store)
    assert shards.dtype == plain.dtype == np.float16
    assert np.concatenate(list(shards)).dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(list(shards)), shards.read())
    assert np.abs(shards.read() - exact).max() < np.abs(plain.read() - exact).max() / 8
    query = np.random.default_rng(1).normal(size=DIM)
    stored = np.concatenate([block for _, block in shards.stored()]).astype(np.float64)
    np.testing.assert_allclose(
        shards.read().astype(np.float64) @ query, stored @ query + shards.mean @ query, atol=1e-4
    )


def test_budget_and_mean_of_the_first_run_are_those_of_the_next(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    store = word_store(35)
    options: dict = {"dim": DIM, "dtype": "float16", "shard_rows": 10}
    with ShardJob.enter(
        tmp_path / "out", SETTINGS, store, centre=lambda: np.full(DIM, 90.0), budget=lambda: {"tokens": 7}, **options
    ) as job:
        next(job.claim())
    with ShardJob.enter(
        tmp_path / "out", SETTINGS, store, centre=lambda: np.zeros(DIM), budget=lambda: {"tokens": 9}, **options
    ) as job:
        assert job.budget == {"tokens": 7}
        np.testing.assert_array_equal(job.mean, np.full(DIM, 90.0))
        shards = work_on(job, store)
    assert shards.manifest["budget"] == {"tokens": 7}
    np.testing.assert_array_equal(shards.mean, np.full(DIM, 90.0))


# --- what else is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"fingerprint": "model-b"}}, "fingerprint 'model-a', now 'model-b'"),
        ({"settings": {"pooling": {"mode": "mean"}}}, "pooling.mode 'cls', now 'mean'"),
        ({"settings": {"prompt": "x"}}, "prompt None, now 'x'"),
        ({"dtype": "float16"}, "dtype 'float32', now 'float16'"),
        ({"rows": 30}, "35 passages then, 30 now"),
        ({"changed": 17}, "rows 10 to 19 held other ids or tokens"),
        ({"prefix": "other"}, "rows 0 to 9 held other ids or tokens"),
    ],
)
def test_other_settings_and_other_corpora_are_refused_until_told_to_start_over(
    word_store: Callable[..., TokenStore], tmp_path: Path, change: dict, message: str, published: bool
) -> None:
    store = word_store(35)
    if published:
        encode(tmp_path / "out", store)
    else:
        with ShardJob.enter(tmp_path / "out", SETTINGS, store, dim=DIM, shard_rows=10) as job:
            for shard in job.claim():
                with job.writer(shard) as out:
                    out.write(vectors(store, shard.start, shard.stop))
                break
    corpus = {name: change[name] for name in ("changed", "prefix") if name in change}
    changed = word_store(change.get("rows", 35), **corpus)
    options = {name: change[name] for name in ("settings", "dtype") if name in change}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ArtifactError) as refused:
        encode(tmp_path / "out", changed, **options)
    assert message in str(refused.value)
    assert "resume=False (--no-resume)" in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    encode(tmp_path / "out", changed, resume=False, **options)
    encode(tmp_path / "new", changed, **options)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "new")
    assert left_behind(tmp_path) == ["new", "out"]


def test_bad_arguments_and_an_empty_corpus_are_refused_before_anything_is_written(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    store = word_store(5)
    for options, message in (
        ({"dtype": "int8"}, "choose float32 or float16"),
        ({"centre": lambda: np.zeros(DIM)}, "centring saves bits of float16"),
        ({"shard_rows": 0}, "at least 1"),
        ({"settings": {"x": np.zeros(2)}}, "plain values"),
    ):
        with pytest.raises(ConfigError, match=message):
            encode(tmp_path / "out", store, **options)
    with pytest.raises(DataError, match="the corpus is empty"):
        encode(tmp_path / "out", word_store(0))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="exists and is not an embeddings"):
        encode(tmp_path / "photos", store, resume=False)
    assert left_behind(tmp_path) == ["photos"]
    with pytest.raises(ConfigError, match="centre gave"):
        encode(tmp_path / "out", store, dtype="float16", centre=lambda: np.zeros(DIM + 1))


def test_a_job_is_not_started_over_under_the_feet_of_others(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    store = word_store(35)
    with ShardJob.enter(tmp_path / "out", SETTINGS, store, dim=DIM, shard_rows=10) as job:
        claims = job.claim()
        next(claims)
        with pytest.raises(ArtifactError, match=f"pid {os.getpid()} on .* is encoding there; stop it"):
            encode(tmp_path / "out", store, resume=False)
        with pytest.raises(ArtifactError, match="now has 45 passages and pid .* encodes the first 35; wait"):
            encode(tmp_path / "out", word_store(45))
        claims.close()
        encode(tmp_path / "out", store, resume=False)
        with pytest.raises(ConfigError, match="is not claimed"):
            job.writer(job.shards[0])


def test_rows_must_fit_their_shard_and_every_shard_must_be_written(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    store = word_store(35)
    with ShardJob.enter(tmp_path / "out", SETTINGS, store, dim=DIM, shard_rows=10) as job:
        claims = job.claim()
        shard = next(claims)
        with pytest.raises(ConfigError, match="9 rows were written, the shard has 10"), job.writer(shard) as out:
            out.write(vectors(store, 0, 9))
        with pytest.raises(ConfigError, match="4 shards are not written"):
            job.finish()
        claims.close()
        claims = job.claim()
        shard = next(claims)
        with job.writer(shard) as out:
            for bad in (np.zeros((11, DIM)), np.zeros((1, DIM + 1)), np.zeros(DIM)):
                with pytest.raises(ConfigError, match="a block of shape"):
                    out.write(bad.astype(np.float32))
            out.write(vectors(store, 0, 10))
        assert [start for start, _, _ in job.finished] == [0]


def test_a_shard_stays_claimed_until_its_writer_ends_however_many_were_asked_for_since(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    store = word_store(35)
    options: dict = {"dim": DIM, "shard_rows": 10}
    with ShardJob.enter(tmp_path / "out", SETTINGS, store, **options) as job:
        claims = job.claim()
        first, second = next(claims), next(claims)
        with job.writer(second) as out:
            out.write(vectors(store, 10, 20))
        with ShardJob.enter(tmp_path / "out", SETTINGS, store, **options) as other:
            theirs = other.claim()
            assert [next(theirs).number, next(theirs).number] == [2, 3]
            with job.writer(first) as out:
                out.write(vectors(store, 0, 10))
            for number in (2, 3):
                with other.writer(other.shards[number]) as out:
                    out.write(vectors(store, 10 * number, other.shards[number].stop))
            assert list(theirs) == list(claims) == []
            other.finish()
        assert job.finish().read().shape == (35, DIM)


def test_a_disk_that_is_full_at_the_end_keeps_every_shard(
    word_store: Callable[..., TokenStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, ids: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shard_job, "write_ids", full)
        with pytest.raises(
            OSError, match="could not seal .*No space left.*all shards are finished and stay, run it again"
        ):
            encode(tmp_path / "out", word_store(35))
    assert not (tmp_path / "out").exists()
    assert len(encode(tmp_path / "out", word_store(35), tmp_path / "log")) == 35
    assert lines(tmp_path / "log") == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_that_cannot_be_stored_are_errors_that_name_the_documents(
    word_store: Callable[..., TokenStore], tmp_path: Path, dtype: str
) -> None:
    with ShardJob.enter(tmp_path / "out", SETTINGS, word_store(35), dim=DIM, dtype=dtype, shard_rows=10) as job:
        claims = job.claim()
        next(claims)
        block = np.ones((10, DIM), dtype=np.float32)
        block[[1, 3, 4, 8], 2] = np.nan
        message = "document 'doc-11', 'doc-13', 'doc-14' and 1 more: the embedding holds NaN or infinity"
        with pytest.raises(DataError, match=message), job.writer(next(claims)) as out:
            out.write(block)
        block[:] = 1
        block[5, 0] = -70000
        with job.writer(next(claims)) as out:
            if dtype == "float32":
                out.write(block)
            else:
                with pytest.raises(DataError, match="'doc-25': an embedding of magnitude 70000 .* store float32"):
                    out.write(block)
                out.write(np.ones((10, DIM), dtype=np.float16))


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "ids", "mean"])
def test_encoding_again_heals_a_damaged_result_and_does_only_what_is_damaged(
    word_store: Callable[..., TokenStore], tmp_path: Path, damage: str
) -> None:
    store = word_store(35)
    out, log = tmp_path / "out", tmp_path / "log"
    centred(out, store)
    whole = hashes(out)
    file = out / {"ids": "ids.arrow", "mean": "mean.npy"}.get(damage, "embeddings-00001.npy")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        flip(file)
    with pytest.raises(ArtifactError, match=f"{file}: .*; encode the corpus again to the same place"):
        EmbeddingShards.open(out)
    centred(out, store, log)
    assert hashes(out) == whole
    assert lines(log) == {"ids": [], "mean": [0, 1, 2, 3]}.get(damage, [1])


def test_a_shard_of_an_unfinished_run_counts_only_if_it_is_what_its_record_says(
    word_store: Callable[..., TokenStore], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = word_store(65)
    encode(tmp_path / "whole", store)
    with ShardJob.enter(tmp_path / "out", SETTINGS, store, dim=DIM, shard_rows=10) as job:
        for shard in job.claim():
            if shard.number == 6:
                break
            with job.writer(shard) as out:
                out.write(vectors(store, shard.start, shard.stop))
        paths = [path for _, _, path in job.finished]
    records = [path.parent.parent / "records" / f"{path.name}.json" for path in paths]
    flip(paths[0])
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    paths[2].unlink()
    records[3].unlink()
    records[4].write_text("{")
    with caplog.at_level(logging.INFO):
        encode(tmp_path / "out", store, tmp_path / "log")
    assert lines(tmp_path / "log") == [0, 1, 2, 3, 4, 6]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    for said in ("checksum differs", "bytes, the manifest says", "missing", "no valid record", "1 of 7 shards"):
        assert said in caplog.text


# --- growth -----------------------------------------------------------------------------------------------------------


def test_a_grown_corpus_keeps_its_shards_budget_and_mean_and_encodes_only_what_is_new(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    old = centred(out, word_store(35))
    inode = (out / "embeddings-00003.npy").stat().st_ino
    store = word_store(55)
    again = {name: lambda: pytest.fail("measured again") for name in ("centre", "budget")}
    shards = centred(out, store, tmp_path / "log", **again)
    assert lines(tmp_path / "log") == [4, 5]
    assert [start for start, _ in shards.stored()] == [0, 10, 20, 30, 35, 45]
    assert (out / "embeddings-00003.npy").stat().st_ino == inode
    assert list(shards.ids) == list(store.ids)
    np.testing.assert_array_equal(shards.mean, old.mean)
    np.testing.assert_allclose(shards.read(), vectors(store, 0, 55), atol=0.01)
    assert EmbeddingShards.open(out).manifest["budget"] == {"tokens": 1024}
    assert left_behind(tmp_path) == ["out"]


def test_an_unfinished_run_goes_on_with_a_corpus_that_has_grown(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    with ShardJob.enter(tmp_path / "out", SETTINGS, word_store(35), dim=DIM, shard_rows=10) as job:
        for shard in job.claim():
            if shard.number == 2:
                break
            with job.writer(shard) as out:
                out.write(vectors(word_store(35), shard.start, shard.stop))
    store = word_store(50)
    shards = encode(tmp_path / "out", store, tmp_path / "log")
    assert lines(tmp_path / "log") == [2, 3, 4, 5]
    np.testing.assert_array_equal(shards.read(), vectors(store, 0, 50))


# --- kills ------------------------------------------------------------------------------------------------------------

IN_A_FRESH_RUN = [
    "claim.before",
    "claim.after",
    "release.before",
    "release.after",
    "job.before",
    "job.after",
    "budget.before",
    "budget.after",
    "mean.before",
    "mean.after",
    "shard.before_rename",
    "shard.after_rename",
    "record.before_rename",
    "record.after_rename",
    "ids.before_rename",
    "ids.after_rename",
    "manifest.before_rename",
    "manifest.after_rename",
    "publish.before",
    "publish.after",
    "cleanup.before",
    "cleanup.between",
    "cleanup.after",
]
WHEN_GROWN = ["adopt.before", "adopt.after", "file.before_rename", "file.after_rename", "publish.between"]
AFTER_A_KILL = ["takeover.before", "takeover.between", "takeover.after"]
WHEN_THE_TARGET_IS_AWAY = ["recover.before", "recover.after"]
WHEN_GROWN_UNFINISHED = ["extend.before_rename", "extend.after_rename"]
# tests/training/test_recovery.py and test_async.py
OF_TRAINING = ("step.", "generation.", "checkpoint.", "worker.")
POINTS = [point for point in crash_points.CRASH_POINTS if not point.startswith(OF_TRAINING)]


def test_every_crash_point_of_encoding_is_tested_here() -> None:
    tested = IN_A_FRESH_RUN + WHEN_GROWN + AFTER_A_KILL + WHEN_THE_TARGET_IS_AWAY + WHEN_GROWN_UNFINISHED
    assert sorted(tested) == sorted(POINTS)


@pytest.fixture(scope="module")
def undisturbed(
    word_store: Callable[..., TokenStore], tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, dict[str, str]]:
    """Hashes of an uninterrupted run over 55 passages: True from nothing, False after one over the first 35."""
    folder = tmp_path_factory.mktemp("undisturbed")
    centred(folder / "fresh", word_store(55))
    centred(folder / "grown", word_store(35))
    centred(folder / "grown", word_store(55))
    return {True: hashes(folder / "fresh"), False: hashes(folder / "grown")}


REACHED_FOR_EVERY_SHARD = [point for point in IN_A_FRESH_RUN if point.split(".")[0] in ("claim", "shard", "record")]


@pytest.mark.parametrize(
    ("point", "count"),
    [(point, 1) for point in POINTS] + [(point, 5) for point in REACHED_FOR_EVERY_SHARD],
)
def test_killed_at_any_point_a_run_goes_on_to_the_same_bytes_and_repeats_one_shard_at_most(
    word_store: Callable[..., TokenStore],
    tmp_path: Path,
    undisturbed: dict[bool, dict[str, str]],
    point: str,
    count: int,
) -> None:
    out, log, store = tmp_path / "out", tmp_path / "log", word_store(55)
    fresh = point in IN_A_FRESH_RUN
    if not fresh:
        centred(out, word_store(35))
    if point in AFTER_A_KILL:
        assert status_of(lambda: killed_at("shard.before_rename:1", lambda: centred(out, store))) == -signal.SIGKILL
    if point in WHEN_THE_TARGET_IS_AWAY:
        assert status_of(lambda: killed_at("publish.between:1", lambda: centred(out, store, log))) == -signal.SIGKILL
        assert not out.exists()
    if point in WHEN_GROWN_UNFINISHED:
        # Made here: a tokenizer that has used its threads must not be used again behind a fork.
        longer = word_store(45)
        assert status_of(lambda: killed_at("shard.after_rename:1", lambda: centred(out, longer, log))) < 0
    assert status_of(lambda: killed_at(f"{point}:{count}", lambda: centred(out, store, log))) == -signal.SIGKILL
    assert len(centred(out, store, log)) == 55
    assert hashes(out) == undisturbed[fresh]
    assert left_behind(tmp_path) == ["out"]
    assert len(lines(log)) - (6 if fresh else 2) <= 1


def killed_at(spec: str, run: Callable[[], object]) -> None:
    crash_points.arm(spec)
    run()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_the_finished_shards_and_says_how_to_go_on(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    store = word_store(2000)
    with ShardJob.enter(tmp_path / "out", SETTINGS, store, dim=DIM, shard_rows=1000) as job:
        claims = job.claim()
        first = next(claims)
        with job.writer(first) as out:
            out.write(vectors(store, 0, 1000))
        second = next(claims)
        message = r"rows 1000 to 1999 .*finished shards stay, run it again.*embeddings-00001\.npy"
        with files_of_at_most(16384), pytest.raises(OSError, match=message), job.writer(second) as out:
            for start in range(1000, 2000, 100):
                out.write(vectors(store, start, start + 100))
        assert [path.name for path in job.finished[0][2].parent.iterdir()] == ["embeddings-00000.npy"]
    encode(tmp_path / "out", store, tmp_path / "log", shard_rows=1000)
    assert lines(tmp_path / "log") == [1]


def test_shard_and_record_are_on_the_device_before_they_count(
    word_store: Callable[..., TokenStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut, other than a kill, loses what was not synced: the order of syncs and renames decides."""
    events: list[str] = []
    rename = os.replace

    def synced(descriptor: int) -> None:
        events.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.lstrip(".").split(".npy")[0])

    def renamed(source: Path, target: Path) -> None:
        events.append("rename " + Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    encode(tmp_path / "out", word_store(5))
    shard = events.index("rename embeddings-00000.npy")
    record = events.index("rename embeddings-00000.npy.json")
    assert events[shard - 1 : record + 2] == [
        "sync embeddings-00000",
        "rename embeddings-00000.npy",
        "sync result",
        "sync embeddings-00000",
        "rename embeddings-00000.npy.json",
        "sync records",
    ]
    assert events[events.index("rename manifest.json") - 1].startswith("sync manifest.json")


# --- several processes ------------------------------------------------------------------------------------------------


def test_processes_share_a_directory_and_one_that_is_killed_is_made_up_for(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    out, log, store = tmp_path / "out", tmp_path / "log", word_store(155)
    centred(tmp_path / "alone", store)
    with (
        forked(lambda: killed_at("shard.before_rename:2", lambda: centred(out, store, log, 0.02))) as victim,
        forked(lambda: centred(out, store, log, 0.02)) as other,
    ):
        shards = centred(out, store, log, 0.02)
        assert os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL
        assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
    assert hashes(out) == hashes(tmp_path / "alone")
    assert len(shards) == 155
    assert set(lines(log)) == set(range(16))
    assert len(lines(log)) == 17  # the victim's second shard, once more
    assert left_behind(tmp_path) == ["alone", "out"]


def test_claims_of_a_silent_host_are_taken_over_and_living_ones_respected(
    word_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    store = word_store(35)
    with ShardJob.enter(tmp_path / "out", SETTINGS, store, dim=DIM, shard_rows=10) as job:
        claims = job._job.files.claims
    silent = {"host": "far", "pid": os.getpid(), "boot": "another", "pids": "x", "started": "1", "token": "t"}
    (claims / "embeddings-00001.npy").write_text(json.dumps(silent))
    os.utime(claims / "embeddings-00001.npy", (1, 1))
    living = Claim.take(claims / "embeddings-00002.npy", stale_after=2.0)
    assert living is not None
    with ShardJob.enter(tmp_path / "out", SETTINGS, store, dim=DIM, shard_rows=10, stale_after=2.0) as job:
        taken = []
        for shard in job.claim():
            taken.append(shard.number)
            with job.writer(shard) as out:
                out.write(vectors(store, shard.start, shard.stop))
            if len(taken) == 3:
                assert taken == [0, 1, 3]
                living.release()
        assert taken == [0, 1, 3, 2]
        job.finish()
