"""A corpus encoded shard by shard, by any number of processes on any number of hosts, any of which may die.

    with ShardJob.enter(out_dir, settings, store, dim=384) as job:
        for shard in job.claim():                      # shards nobody else works on, until all are finished
            with job.writer(shard) as out:
                out.write(block)                       # rows shard.start.. in order, until shard.stop
        shards = job.finish()

A shard counts when its record is there, and its record is written last. When every shard counts, one process seals the
result and renames it to the target. A process can be killed at any moment: the next one finds the job, keeps the shards
that count, takes over the claims of the dead, and the bytes are those of a run that nothing disturbed. `job_entry`
describes the files and who may join.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ance_fast.artifacts import atomic_file, create_once, publish, seal
from ance_fast.data.token_store import TokenStore
from ance_fast.encoding.claims import STALE_AFTER_SECONDS, Claim, holder
from ance_fast.encoding.job_entry import (
    Job,
    JobFiles,
    Published,
    Wanted,
    enter_job,
    identity_of,
    read_job,
    shards_of,
    sweep,
)
from ance_fast.encoding.shard_plan import Shard, content_digest, json_settings
from ance_fast.encoding.shard_writer import ShardWriter, read_record, shard_fault
from ance_fast.encoding.shards import IDS, KIND, MEAN, EmbeddingShards, read_mean, write_ids
from ance_fast.errors import ArtifactError, ConfigError, DataError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


class ShardJob:
    """One process's part in a job; made by `enter`. Leaving its block gives up the claims it still holds.

    Attributes:
        path: where the result will be.
        shards: all shards of the job, in row order.
        budget: what `budget()` gave to the first process of the job, None without.
        mean: float32 [dim], what `centre()` gave to the first process of the job, None without.
    """

    def __init__(
        self, wanted: Wanted, store: TokenStore, entered: Job | Published, *, verify: bool, stale_after: float
    ) -> None:
        self.path = wanted.target
        self.budget: dict[str, Any] | None = None
        self.mean: np.ndarray | None = None
        self._wanted, self._store, self._stale_after = wanted, store, stale_after
        self._job = entered if isinstance(entered, Job) else None
        self.shards: tuple[Shard, ...] = tuple(entered.shards)
        self._held: dict[int, Claim] = {}
        self._writing: set[int] = set()
        self._whole: set[int] = set()
        if isinstance(entered, Published):
            self._whole.update(range(len(self.shards)))
            self.budget = entered.manifest.get("budget")
        else:
            self._check_finished(entered.files, verify)

    @classmethod
    def enter(
        cls,
        out_dir: str | os.PathLike[str],
        settings: Mapping[str, Any],
        store: TokenStore,
        *,
        dim: int,
        dtype: str = "float32",
        shard_rows: int = 65536,
        resume: bool = True,
        centre: Callable[[], np.ndarray] | None = None,
        budget: Callable[[], Mapping[str, Any]] | None = None,
        verify: bool = True,
        stale_after: float = STALE_AFTER_SECONDS,
    ) -> ShardJob:
        """Found the job that fills `out_dir`, or join it, or go on with it.

        settings: plain values that decide the embeddings, "fingerprint" (of the encoder) among them.
        dtype: "float32" or "float16", as stored.
        shard_rows: rows of a new shard; shards that exist keep theirs.
        resume: False throws away what is unfinished and replaces what is published. Of several processes, the first
            alone is to be told so.
        centre: gives float32 [dim] to subtract before rounding to float16.
        budget: gives a plain dict that every process of the job is to use, e.g. a measured token budget. `centre` and
            `budget` are called by the process that needs them first, so that a run that goes on has equal bytes.
        verify: compare the checksums of the shards that exist (one read) and do the damaged ones again.
        stale_after: seconds without a sign of life after which another host's claims are taken over.

        If `out_dir` holds the same already, nothing is left to claim. If it holds the same settings and the beginning
        of this corpus, its shards are taken over and only the new rows are encoded.

        Raises `ArtifactError` if settings or corpus are others than those of the result or of the unfinished run (says
        which, then and now), `DataError` for an empty corpus, `ConfigError`, `OSError`.
        """
        if dtype not in ("float32", "float16"):
            raise ConfigError(f"dtype={dtype!r}: choose float32 or float16")
        if centre is not None and dtype != "float16":
            raise ConfigError("centring saves bits of float16; store float16 or leave it out")
        if dim < 1 or shard_rows < 1:
            raise ConfigError(f"dim and shard_rows must be at least 1, not {dim} and {shard_rows}")
        if not len(store):
            raise DataError(f"{store}: the corpus is empty, there is nothing to encode")
        identity = job_identity(settings, dim=dim, dtype=dtype, centred=centre is not None)
        wanted = wanted_result(out_dir, store, identity, shard_rows)
        entered = enter_job(wanted, resume=resume, verify=verify, stale_after=stale_after)
        job = cls(wanted, store, entered, verify=verify, stale_after=stale_after)
        if job._job is not None:
            job._agree(job._job.files, centre, budget)
        elif centre is not None:
            job.mean = read_mean(wanted.target / MEAN, dim)
        return job

    @property
    def finished(self) -> list[tuple[int, int, Path]]:
        """(start, stop, path) of the shards that are whole now; paths hold until `finish`."""
        folder = self.path if self._job is None else self._job.files.result
        return [(shard.start, shard.stop, folder / shard.name) for shard in self.shards if self._is_whole(shard)]

    def claim(self, stopped: threading.Event | None = None) -> Iterator[Shard]:
        """Shards for this process to write, until every shard is finished by somebody, or `stopped` is set.

        Each stays claimed until its writer ends, which may be in another thread and after the next one was asked for.
        Where all that is left is being done by others this waits for them, and takes over from those that die: hand all
        rows of a shard to its writer before asking for the next.
        """
        waiting = False
        stopped = stopped or threading.Event()
        while not stopped.is_set():
            left = [shard for shard in self.shards if shard.number not in self._held and not self._is_whole(shard)]
            # In this order: the result disappears only when every shard is whole.
            if not left or self._is_over():
                return
            claimed = False
            for shard in left:
                if stopped.is_set():
                    return
                claim = self._take(shard.name)
                if claim is None:
                    continue
                if self._is_whole(shard) or self._is_over():
                    claim.release()
                    continue
                claimed = True
                self._held[shard.number] = claim
                try:
                    yield shard
                except BaseException:
                    if shard.number not in self._writing:
                        self._give_up(shard, False)
                    raise
            if not claimed:
                if not waiting:
                    logger.info("%s: waiting for %d shards that other processes encode", self.path, len(left))
                waiting = True
                stopped.wait(POLL_SECONDS)

    def writer(self, shard: Shard) -> ShardWriter:
        """Where the rows of a claimed shard go: `ShardWriter`. Raises `ConfigError` if the shard is not claimed."""
        if self._job is None or shard.number not in self._held:
            raise ConfigError(f"{self.path}: shard {shard.number} is not claimed; take it from claim()")
        self._writing.add(shard.number)
        return ShardWriter(
            shard,
            self._job.files.result,
            self._job.files.record(shard),
            dim=self._wanted.identity["dim"],
            dtype=self._wanted.identity["dtype"],
            mean=self.mean,
            ids=self._store.ids,
            on_end=partial(self._give_up, shard),
        )

    def finish(self) -> EmbeddingShards:
        """Publish the result, or wait until another process has done so, and open it.

        Raises `ConfigError` if shards are unfinished, `ArtifactError` if another process has started the job over or
        extended it, `OSError`.
        """
        while not self._is_over():
            missing = [shard for shard in self.shards if not self._is_whole(shard)]
            if missing and not self._is_over():
                raise ConfigError(f"{self.path}: {len(missing)} shards are not written; go through claim() to its end")
            claim = self._take("publish")
            if claim is None:
                time.sleep(POLL_SECONDS)
                continue
            with claim:
                try:
                    self._publish()
                except OSError as error:
                    if isinstance(error, FileNotFoundError) and self._is_over():
                        continue  # a second holder of this claim was faster
                    raise OSError(
                        error.errno,
                        f"could not seal the embeddings ({error.strerror or error}); all shards are finished and stay, "
                        "run it again to go on",
                        str(self.path),
                    ) from error
        self.close()
        shards = EmbeddingShards.open(self.path, verify=False)
        same = identity_of(shards.manifest) == self._wanted.identity
        if not same or tuple(shards_of(shards.manifest)[: len(self.shards)]) != self.shards:
            raise ArtifactError(f"{self.path}: another process has started over and made something else there")
        return shards

    def close(self) -> None:
        """Give up the claims that are held."""
        for number in list(self._held):
            self._held.pop(number).release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_finished(self, files: JobFiles, verify: bool) -> None:
        """Forget the shards that an earlier process left and that are not what their records say."""
        for shard in self.shards:
            fault = self._fault(files, shard, verify)
            if fault is None:
                self._whole.add(shard.number)
                continue
            found = files.record(shard).exists() or (files.result / shard.name).exists()
            # A shard without a record that somebody has claimed is one he is about to record.
            if not found or holder(files.claims / shard.name, stale_after=self._stale_after) is not None:
                continue
            # Looked at again: its record may have come, and its claim gone, between the two looks.
            if self._fault(files, shard, verify) is not None:
                logger.warning("%s: %s; done again", files.result / shard.name, fault)
                files.record(shard).unlink(missing_ok=True)
        if self._whole:
            logger.info("%s: going on, %d of %d shards are there", self.path, len(self._whole), len(self.shards))

    def _agree(
        self,
        files: JobFiles,
        centre: Callable[[], np.ndarray] | None,
        budget: Callable[[], Mapping[str, Any]] | None,
    ) -> None:
        """Let `budget` and `mean` be what the first process of the job found."""
        dim = self._wanted.identity["dim"]

        def measure() -> bytes:
            assert budget is not None
            return json.dumps(json_settings(budget()), sort_keys=True).encode()

        def average() -> bytes:
            assert centre is not None
            mean = np.asarray(centre(), dtype=np.float32)
            if mean.shape != (dim,) or not np.isfinite(mean).all():
                raise ConfigError(f"centre gave {list(mean.shape)}, expected {dim} finite values")
            file = io.BytesIO()
            np.save(file, mean)
            return file.getvalue()

        if len(self._whole) < len(self.shards) and budget is not None:
            self._once(files.budget, measure, "budget")
        if centre is not None:
            self._once(files.result / MEAN, average, "mean")
            if not self._is_over():
                self.mean = read_mean(files.result / MEAN, dim)
        if files.budget.exists():
            self.budget = json.loads(files.budget.read_text(encoding="utf-8"))

    def _once(self, path: Path, make: Callable[[], bytes], point: str) -> None:
        while not path.exists() and not self._is_over():
            claim = self._take(path.name)
            if claim is None:
                time.sleep(POLL_SECONDS)
                continue
            with claim:
                if not path.exists():
                    create_once(path, make(), point=point)

    def _take(self, name: str) -> Claim | None:
        assert self._job is not None
        try:
            return Claim.take(self._job.files.claims / name, stale_after=self._stale_after)
        except FileNotFoundError:
            return None  # the job is over, and its directory gone

    def _give_up(self, shard: Shard, whole: bool) -> None:
        if whole:
            self._whole.add(shard.number)
        self._writing.discard(shard.number)
        claim = self._held.pop(shard.number, None)
        if claim is not None:
            claim.release()

    def _fault(self, files: JobFiles, shard: Shard, verify: bool) -> str | None:
        dtype = self._wanted.identity["dtype"]
        return shard_fault(files.result / shard.name, files.record(shard), shard, dtype, verify=verify)

    def _is_whole(self, shard: Shard) -> bool:
        if shard.number in self._whole:
            return True
        assert self._job is not None
        if self._fault(self._job.files, shard, verify=False) is not None:
            return False
        self._whole.add(shard.number)
        return True

    def _is_over(self) -> bool:
        """Whether the result has been published (or the job thrown away): its directory is not in its place."""
        return self._job is None or not self._job.files.result.is_dir()

    def _publish(self) -> None:
        assert self._job is not None
        files, job = self._job.files, read_job(self._wanted.work)
        if job is None or job.files != files or tuple(job.shards) != self.shards:
            if self._is_over():
                return
            raise ArtifactError(f"{self.path}: another process has given the job another corpus; run this again")
        records = {}
        for shard in self.shards:
            record = read_record(files.record(shard), shard, self._wanted.identity["dtype"])
            if record is None:
                raise ArtifactError(f"{files.record(shard)}: gone while the job was running; run it again to go on")
            records[shard.name] = record
        with atomic_file(files.result / IDS, point="ids") as staging:
            write_ids(staging, self._store.ids.arrow)
        for stray in files.result.iterdir():
            # Of writers that died, or that hold a claim which was taken over from them.
            if stray.name not in (IDS, MEAN, *records):
                stray.unlink(missing_ok=True)
        seal(files.result, KIND, self._manifest(), known=records)
        publish(files.result, self.path)
        sweep(self._wanted.work, job, self._stale_after)

    def _manifest(self) -> dict[str, Any]:
        settings = self._wanted.identity["settings"]
        return {
            **self._wanted.identity,
            "fingerprint": settings.get("fingerprint"),
            "rows": len(self._store),
            "budget": self.budget,
            "shards": [
                {"file": shard.name, "start": shard.start, "rows": shard.rows, "content": shard.content}
                for shard in self.shards
            ],
            "versions": _versions(),
        }


def job_identity(settings: Mapping[str, Any], *, dim: int, dtype: str, centred: bool) -> dict[str, Any]:
    """What decides the embeddings of a corpus, as a manifest holds it."""
    return {"settings": json_settings(settings), "dim": dim, "dtype": dtype, "centred": centred}


def wanted_result(
    out_dir: str | os.PathLike[str], store: TokenStore, identity: dict[str, Any], shard_rows: int = 65536
) -> Wanted:
    """The embeddings of `store` at `out_dir`."""
    digest = cache(partial(content_digest, store))
    return Wanted(Path(os.path.abspath(out_dir)), identity, len(store), shard_rows, digest)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("ance_fast", "numpy", "pyarrow", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
