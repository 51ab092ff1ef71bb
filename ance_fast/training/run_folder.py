"""The folder of a run: begun once, resumed only with the settings and the data it was begun with."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.artifacts import open_artifact, sweep, write_json
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.training.checkpoints import KIND, cut_log, newest_valid_checkpoint
from ance_fast.training.dev import HeldOut
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import NegativeSampler

logger = logging.getLogger(__name__)

Identity = dict[str, Any]
"""{"settings": ..., "data": ...} of a run, both flat."""


class RunFolder:
    """What `path` holds of a run besides its weights: `config.json`, the logs, and whether there is one to resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def has_checkpoints(self) -> bool:
        """Whether a run got as far as its first checkpoint here."""
        return any((self.path / "checkpoints").glob("step-*"))

    def begin(self, identity: Identity) -> None:
        """Make room for a new run; what one without checkpoints left is removed. Raises `ConfigError` otherwise."""
        if self.has_checkpoints():
            raise ConfigError(f"{self.path}: holds checkpoints of a run; resume it, or choose another output folder")
        sweep(self.path)
        for name in ("generations", "best", "tensorboard"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("best.json", "report.html"):
            (self.path / name).unlink(missing_ok=True)
        for log in ("metrics.jsonl", "negatives.jsonl"):
            cut_log(self.path / log, lambda entry: False)
        write_json(self.path / "config.json", identity)

    def resume_point(self, identity: Identity) -> Path | None:
        """The newest whole checkpoint, with the logs cut back to it; None for a run that was killed before its first.

        Raises `ArtifactError` if there is nothing to resume, `ConfigError` if settings or data are others.
        """
        try:
            earlier = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{self.path}: no run to resume (config.json: {error})") from error
        now = json.loads(json.dumps(identity))
        different = [
            f"{name}: {earlier[part].get(name)!r} then, {value!r} now"
            for part in ("settings", "data")
            for name, value in now[part].items()
            if earlier[part].get(name) != value
        ]
        if different:
            raise ConfigError(f"{self.path}: cannot resume with other settings or data ({'; '.join(different)})")
        for folder in (self.path, self.path / "generations", self.path / "checkpoints"):
            sweep(folder)
        if not self.has_checkpoints():
            logger.info("%s: killed before its first checkpoint, so the run begins anew", self.path)
            return None
        checkpoint = newest_valid_checkpoint(self.path / "checkpoints")
        step = step_of(checkpoint)
        cut_log(self.path / "metrics.jsonl", lambda e: e["step"] < step or (e["step"] == step and "loss" in e))
        cut_log(self.path / "negatives.jsonl", lambda e: e["step"] < step)
        return checkpoint


def held_out_identity(held_out: HeldOut | None) -> dict[str, str]:
    """What dev queries are measured by beside the run's own corpus: nothing, unless they have more."""
    if held_out is None:
        return {}
    found = {}
    if held_out.passages is not None:
        found["dev_passages"] = held_out.passages.manifest["content"]
    if held_out.candidates is not None:
        rows = held_out.candidates.offsets.tobytes() + held_out.candidates.rows.tobytes()
        found["dev_candidates"] = hashlib.blake2b(rows, digest_size=16).hexdigest()
    return found


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that had been made when it was written."""
    return int(open_artifact(checkpoint, KIND, verify=False)["step"])


def last_refresh(log: Path) -> int:
    """The step of the newest generation in a metrics log, 0 if there is none."""
    if not log.exists():
        return 0
    entries = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return max((entry["step"] for entry in entries if "generation" in entry), default=0)


def newest_told(log: Path) -> int:
    """The number of the newest generation in a metrics log, 0 if there is none."""
    if not log.exists():
        return 0
    entries = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return max((int(entry["generation"]) for entry in entries if "generation" in entry), default=0)


def data_identity(start: str, examples: Examples, held_out: HeldOut | None, sampler: NegativeSampler) -> dict[str, Any]:
    """What a run learns from: the fingerprint of its first weights, passages, queries, positives, dev queries, and the
    candidates, teacher scores and documents that its sampler was given."""
    digest, given = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    digest.update(examples.positive_offsets.tobytes() + examples.positive_rows.tobytes())
    for name, table in sorted(sampler.tables.items()):
        given.update(name.encode() + table.candidates.tobytes())
    if sampler.answers is not None:
        given.update(sampler.answers.digest())
    if sampler.documents is not None:
        given.update(sampler.documents.tobytes())
    if sampler.teacher is not None:
        given.update(sampler.teacher.keys.tobytes() + sampler.teacher.scores.tobytes())
    if examples.triples is not None:
        given.update(np.ascontiguousarray(examples.triples).tobytes())
    return {
        "start": start,
        "passages": examples.passages.manifest["content"],
        "chunks": examples.passages.manifest.get("chunks"),
        "queries": examples.queries.manifest["content"],
        "positives": digest.hexdigest(),
        "candidates": given.hexdigest(),
        "dev": held_out.queries.manifest["content"] if held_out else None,
        **held_out_identity(held_out),
    }
