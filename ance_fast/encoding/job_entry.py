"""Entering a job: found it, join it, find that it is done already, or refuse to mix two things.

Everything lies in a working directory beside the target:

    .NAME.encoding/job.json             what is made from what: settings, and the shards with digests of their tokens
    .NAME.encoding/TOKEN/result/        what will be published: shards, ids.arrow, mean.npy, and last manifest.json
    .NAME.encoding/TOKEN/records/       a record of each finished shard
    .NAME.encoding/TOKEN/claims/        who works on what
    .NAME.encoding/TOKEN/budget.json    what was measured once for the whole job

`job.json` can be created only once, so one process founds the job and all others find it; they join if they want the
same thing. TOKEN is drawn by the founder: a process of a job that was started over meanwhile cannot write into the new
one, because its paths are gone. `result` is gone, and job.json still there, when a process died after publishing.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ance_fast.artifacts import atomic_file, create_once, damage, read_manifest, refuse_foreign, write_json
from ance_fast.crash_points import crash_point
from ance_fast.encoding.claims import holder
from ance_fast.encoding.shard_plan import Shard, first_difference, plan_shards, settings_differences
from ance_fast.encoding.shard_writer import write_record
from ance_fast.encoding.shards import KIND, MEAN
from ance_fast.errors import ArtifactError

logger = logging.getLogger(__name__)

START_OVER = "choose another place, or start over with resume=False (--no-resume)"


@dataclass(frozen=True)
class Wanted:
    """What the caller wants made. `digest(start, stop)`: of these rows.

    `identity`: what decides the embeddings; empty in a question about the corpus alone.
    """

    target: Path
    identity: dict[str, Any]
    rows: int
    shard_rows: int
    digest: Callable[[int, int], str]

    @property
    def work(self) -> Path:
        """The working directory."""
        return self.target.with_name(f".{self.target.name}.encoding")


@dataclass(frozen=True)
class JobFiles:
    """Where the files of one job lie."""

    root: Path

    @property
    def result(self) -> Path:
        """What will be published."""
        return self.root / "result"

    @property
    def claims(self) -> Path:
        """Who works on what."""
        return self.root / "claims"

    @property
    def budget(self) -> Path:
        """What was measured for the job."""
        return self.root / "budget.json"

    def record(self, shard: Shard) -> Path:
        """The record of a shard."""
        return self.root / "records" / f"{shard.name}.json"


@dataclass(frozen=True)
class Job:
    """What job.json says."""

    files: JobFiles
    identity: dict[str, Any]
    shards: list[Shard]


@dataclass(frozen=True)
class Published:
    """What lies at the target; `faults` tells of each damaged file what is wrong."""

    manifest: dict[str, Any]
    shards: list[Shard]
    faults: dict[str, str]


def enter_job(wanted: Wanted, *, resume: bool, verify: bool, stale_after: float) -> Job | Published:
    """The job to work on, or what is published if that is all that is wanted already.

    Raises `ArtifactError` if something else is at the target or in the working directory.
    """
    wanted.work.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        _discard(wanted.work, stale_after)
    while True:
        refuse_foreign(wanted.target, KIND)
        job = read_job(wanted.work)
        refusal = None if job is None else _refusal(job.identity, job.shards, wanted)
        if job is not None and refusal is None and job.files.result.is_dir():
            return _extended(job, wanted, stale_after)
        published = _published(wanted, verify) if resume else None
        if published is not None and _is_all(published, wanted):
            if refusal is None:
                sweep(wanted.work, job, stale_after)
            return published
        if refusal is not None:
            raise ArtifactError(_unfinished(wanted, refusal))
        if job is not None:
            sweep(wanted.work, job, stale_after)  # its result was published and replaced since
        # FileNotFoundError: another process swept the directory while the job was being founded in it.
        with suppress(FileNotFoundError):
            _found(wanted, published)


def refuse_other(wanted: Wanted) -> None:
    """Raise the `ArtifactError` that `enter_job` would, so that what costs much need not be done in vain."""
    refuse_foreign(wanted.target, KIND)
    job = read_job(wanted.work)
    refusal = None if job is None else _refusal(job.identity, job.shards, wanted)
    if job is not None and refusal is None and job.files.result.is_dir():
        return
    published = _published(wanted, verify=False)
    if refusal is not None and not _is_all(published, wanted):
        raise ArtifactError(_unfinished(wanted, refusal))


def read_job(work: Path) -> Job | None:
    """What job.json in the working directory says, None if there is none. Raises `ArtifactError` if it is damaged."""
    path = work / "job.json"
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        shards = [Shard(**shard) for shard in note["shards"]]
        return Job(JobFiles(work / str(note["token"])), dict(note["identity"]), shards)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not readable ({error!r}); start over with resume=False (--no-resume)") from error


def identity_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that `Wanted.identity` is compared with. Raises `KeyError`."""
    return {"settings": manifest["settings"], **{name: manifest[name] for name in ("dim", "dtype", "centred")}}


def shards_of(manifest: Mapping[str, Any]) -> list[Shard]:
    """The shards a manifest lists. Raises `KeyError`, `TypeError`."""
    return [
        Shard(number, shard["start"], shard["start"] + shard["rows"], shard["content"])
        for number, shard in enumerate(manifest["shards"])
    ]


def sweep(work: Path, job: Job | None, stale_after: float) -> None:
    """Remove what finished and dead jobs left in the working directory: `job`, and founders that came to nothing.

    `job` is over: what lies in it is no use to anybody who still holds a claim there. A founder that is swept away by
    mistake finds its directory gone and begins again.
    """
    crash_point("cleanup.before")
    with suppress(ArtifactError):
        current = read_job(work)
        if current is not None and job is not None and current.files == job.files:
            (work / "job.json").unlink(missing_ok=True)
            current = None
        crash_point("cleanup.between")
        for root in _roots(work):
            over = job is not None and root == job.files.root
            if (current is None or root != current.files.root) and (over or not _workers(root, stale_after)):
                shutil.rmtree(root, ignore_errors=True)
        if current is None:
            for stray in work.glob(".job.json.*.tmp"):
                stray.unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()
    crash_point("cleanup.after")


def _discard(work: Path, stale_after: float) -> None:
    for root in _roots(work):
        workers = _workers(root, stale_after)
        if workers:
            raise ArtifactError(f"{work}: {workers[0]} is encoding there; stop it before starting over")
    (work / "job.json").unlink(missing_ok=True)
    for root in _roots(work):
        shutil.rmtree(root, ignore_errors=True)


def _found(wanted: Wanted, published: Published | None) -> None:
    """Make job.json, unless another process does so first. Shards that are published and intact are taken over."""
    token = uuid.uuid4().hex[:12]
    files = JobFiles(wanted.work / token)
    keep: list[Shard] = published.shards if published is not None else []
    shards = plan_shards(wanted.rows, wanted.shard_rows, wanted.digest, keep)
    for folder in (files.result, files.claims, files.root / "records"):
        folder.mkdir(parents=True)
    if published is not None:
        _adopt(files, published, wanted)
    note = {"token": token, "identity": wanted.identity, "shards": [asdict(shard) for shard in shards]}
    text = json.dumps(note, indent=1, sort_keys=True) + "\n"
    if not create_once(wanted.work / "job.json", text.encode(), point="job"):
        shutil.rmtree(files.root, ignore_errors=True)


def _adopt(files: JobFiles, published: Published, wanted: Wanted) -> None:
    """Take over what is intact of the published result, without copying where the file system can."""
    manifest = published.manifest
    if manifest["centred"]:
        if MEAN in published.faults:
            logger.warning("%s: %s; every shard is done again", wanted.target / MEAN, published.faults[MEAN])
            return
        _link(wanted.target / MEAN, files.result / MEAN)
    if manifest.get("budget") is not None:
        write_json(files.budget, manifest["budget"])
    for shard in published.shards:
        if shard.name in published.faults:
            logger.warning("%s: %s; done again", wanted.target / shard.name, published.faults[shard.name])
            continue
        crash_point("adopt.before")
        known = manifest["files"][shard.name]
        _link(wanted.target / shard.name, files.result / shard.name)
        write_record(files.record(shard), shard, manifest["dtype"], known["bytes"], known["blake2b"])
        crash_point("adopt.after")


def _extended(job: Job, wanted: Wanted, stale_after: float) -> Job:
    """`job`, with shards for what the corpus has gained since it was founded."""
    before = job.shards[-1].stop
    if before == wanted.rows:
        return job
    workers = _workers(job.files.root, stale_after)
    if workers:
        raise ArtifactError(
            f"{wanted.work}: the corpus now has {wanted.rows} passages and {workers[0]} encodes the first {before}; "
            "wait for it to end"
        )
    shards = plan_shards(wanted.rows, wanted.shard_rows, wanted.digest, job.shards)
    note = {"token": job.files.root.name, "identity": job.identity, "shards": [asdict(shard) for shard in shards]}
    write_json(wanted.work / "job.json", note, point="extend")
    logger.info("%s: the corpus has grown from %d to %d passages", wanted.work, before, wanted.rows)
    return Job(job.files, job.identity, shards)


def _published(wanted: Wanted, verify: bool) -> Published | None:
    """What lies at the target. Raises `ArtifactError` if it is not a beginning of what is wanted."""
    if not wanted.target.is_dir() or not any(wanted.target.iterdir()):
        return None
    manifest = read_manifest(wanted.target, KIND, remedy=START_OVER)
    try:
        identity, shards = identity_of(manifest), shards_of(manifest)
        files = manifest["files"]
        listed = [entry["file"] for entry in manifest["shards"] if entry["file"] in files]
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{wanted.target}: does not say what it was made from ({error!r}); {START_OVER}") from error
    if not shards or listed != [shard.name for shard in shards]:
        raise ArtifactError(f"{wanted.target}: its manifest does not list its shards; {START_OVER}")
    refusal = _refusal(identity, shards, wanted)
    if refusal is not None:
        raise ArtifactError(f"{wanted.target}: was {refusal}; {START_OVER}")
    found = {name: damage(wanted.target / name, entry, verify=verify) for name, entry in files.items()}
    return Published(manifest, shards, {name: fault for name, fault in found.items() if fault is not None})


def _is_all(published: Published | None, wanted: Wanted) -> bool:
    return published is not None and not published.faults and published.shards[-1].stop == wanted.rows


def _unfinished(wanted: Wanted, refusal: str) -> str:
    return f"{wanted.work}: an unfinished run was {refusal}; finish it as it was, {START_OVER}"


def _refusal(identity: Mapping[str, Any], shards: list[Shard], wanted: Wanted) -> str | None:
    """How `identity` and `shards` contradict what is wanted, None if they are the beginning of it."""
    differences = settings_differences(_named(identity), _named(wanted.identity)) if wanted.identity else []
    if differences:
        return "made with " + "; ".join(differences)
    difference = first_difference(shards, wanted.rows, wanted.digest)
    return None if difference is None else f"made from another corpus ({difference})"


def _named(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the prefix "settings.", for messages."""
    return {**identity["settings"], **{name: value for name, value in identity.items() if name != "settings"}}


def _roots(work: Path) -> list[Path]:
    try:
        return sorted(path for path in work.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _workers(root: Path, stale_after: float) -> list[str]:
    """Who holds claims in the job at `root`."""
    try:
        claims = sorted(path for path in (root / "claims").iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
    found = (holder(claim, stale_after=stale_after) for claim in claims)
    return [name for name in found if name is not None]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        with atomic_file(target) as staging:
            shutil.copyfile(source, staging)
