"""The files by which microsoft/ANCE's miner and trainer talk: `ann_training_data_N` and `ann_ndcg_N`.

    ann_training_data_N     query <tab> positive <tab> negative,negative,...     a line a query; numbers are offsets
    ann_ndcg_N              {"ndcg": 0.61, "checkpoint": "/runs/checkpoint-10000"}

Offsets number the records of its caches (`train-query`, `passages`), so they are rows here. Its trainer takes the
highest N that has an `ann_ndcg_N` and then reads the training data: write the generation with `write_ann_generation`,
which makes the file that announces the other one last. The OpenQA miner names other metrics in `ann_ndcg_N` ("top20",
...) and may write a query without negatives. Source: github.com/microsoft/ANCE (Xiong et al. 2021).
"""

from __future__ import annotations

import json
import math
import os
import re
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ance_fast.artifacts import atomic_file
from ance_fast.data.text_lines import read_lines
from ance_fast.errors import ArtifactError, DataError

DATA = "ann_training_data_"
NDCG = "ann_ndcg_"

_LINE = re.compile(r"\d+\t\d+\t(?:\d+(?:,\d+)*)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class AnnTrainingData:
    """n lines of (query, positive, negatives), in the file's order.

    queries, positives: int64 [n]. The negatives of line i are `negatives[offsets[i] : offsets[i + 1]]` (both int64).
    """

    queries: np.ndarray
    positives: np.ndarray
    offsets: np.ndarray
    negatives: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    def of(self, line: int) -> np.ndarray:
        """The negatives of one line, int64."""
        return self.negatives[self.offsets[line] : self.offsets[line + 1]]


@dataclass(frozen=True)
class AnnReport:
    """What `ann_ndcg_N` says: dev metrics by name ("ndcg", or "top20" and its like) and the checkpoint that mined."""

    metrics: dict[str, float]
    checkpoint: str


def read_ann_training_data(path: str | Path) -> AnnTrainingData:
    """Read `ann_training_data_N`.

    Raises `DataError` with file and line: other than three columns, something that is no offset, a number beyond int64,
    a last line without its end (the miner writes in place, so a file may be caught half-written).
    """
    path = Path(path)
    queries, positives, negatives = array("q"), array("q"), array("q")
    offsets = array("q", [0])
    number = 0
    for number, line in read_lines(path):
        if not line or line.isspace():
            continue
        if not _LINE.fullmatch(line):
            raise DataError(f"{path}:{number}: {_fault(line)}; expected `query <tab> positive <tab> negative,...`")
        query, positive, rest = line.split("\t")
        try:
            queries.append(int(query))
            positives.append(int(positive))
            negatives.extend(map(int, rest.split(",")) if rest else ())
        except (OverflowError, ValueError):  # ValueError: thousands of digits
            raise DataError(f"{path}:{number}: an offset does not fit 64 bits") from None
        offsets.append(len(negatives))
    if number and not _ends_line(path):
        raise DataError(f"{path}:{number}: the last line has no end: the file was cut short, or is still being written")
    return AnnTrainingData(*(np.array(part, dtype=np.int64) for part in (queries, positives, offsets, negatives)))


def write_ann_training_data(path: str | Path, data: AnnTrainingData) -> None:
    """Write `ann_training_data_N`, atomically, in the order of `data` (microsoft/ANCE reads it in file order: shuffle).

    Raises `DataError` for negative numbers, and for a line without negatives, which its MS MARCO trainer cannot read.
    """
    path = Path(path)
    for name in ("queries", "positives", "negatives"):
        if (getattr(data, name) < 0).any():
            raise DataError(f"{path}: {name} holds {getattr(data, name).min()}; offsets count from 0")
    empty = np.flatnonzero(np.diff(data.offsets) == 0)
    if len(empty):
        raise DataError(
            f"{path}: query {data.queries[empty[0]]} has no negatives ({len(empty)} such lines); leave such queries out"
        )
    with atomic_file(path) as staging, open(staging, "w", encoding="ascii", newline="\n") as file:
        for line, (query, positive) in enumerate(zip(data.queries.tolist(), data.positives.tolist(), strict=True)):
            file.write(f"{query}\t{positive}\t{','.join(map(str, data.of(line).tolist()))}\n")


def read_ann_report(path: str | Path) -> AnnReport:
    """Read `ann_ndcg_N`. Raises `DataError` with file and line: not JSON, no checkpoint, a metric that is no number."""
    path = Path(path)
    text = "\n".join(line for _, line in read_lines(path))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError:
        raise DataError(f"{path}:1: JSON nested too deeply") from None
    if not isinstance(value, dict) or not isinstance(value.get("checkpoint"), str):
        raise DataError(f'{path}:1: expected an object with the string "checkpoint"')
    metrics = {name: found for name, found in value.items() if name != "checkpoint"}
    for name, found in metrics.items():
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise DataError(f"{path}:1: {name!r} is {found!r}, which is not a number")
    return AnnReport({name: float(found) for name, found in metrics.items()}, value["checkpoint"])


def write_ann_report(path: str | Path, report: AnnReport) -> None:
    """Write `ann_ndcg_N`, atomically. Raises `DataError` for a metric that is not finite, which is not JSON."""
    path = Path(path)
    for name, value in report.metrics.items():
        if not math.isfinite(value):
            raise DataError(f"{path}: {name!r} is {value}; only finite numbers can be written")
    with atomic_file(path) as staging:
        staging.write_text(json.dumps({**report.metrics, "checkpoint": report.checkpoint}), encoding="utf-8")


def write_ann_generation(folder: str | Path, generation: int, data: AnnTrainingData, report: AnnReport) -> Path:
    """Write both files of a generation into `folder`, the report last; returns the path of the training data."""
    path = Path(folder) / f"{DATA}{generation}"
    write_ann_training_data(path, data)
    write_ann_report(Path(folder) / f"{NDCG}{generation}", report)
    return path


def newest_ann_generation(folder: str | Path) -> tuple[int, AnnTrainingData, AnnReport]:
    """The highest generation that was announced, as microsoft/ANCE's trainer chooses it: number, data, report.

    Raises `ArtifactError` if there is none, `DataError` if its files are malformed or the data is missing.
    """
    folder = Path(folder)
    names = os.listdir(folder) if folder.is_dir() else []
    found = [int(name.removeprefix(NDCG)) for name in names if re.fullmatch(NDCG + r"\d+", name, re.ASCII)]
    if not found:
        raise ArtifactError(f"{folder}: no {NDCG}N, so no generation of negatives was finished here")
    newest = max(found)
    return newest, read_ann_training_data(folder / f"{DATA}{newest}"), read_ann_report(folder / f"{NDCG}{newest}")


def _fault(line: str) -> str:
    columns = line.split("\t")
    if len(columns) != 3:
        return f"{len(columns)} columns"
    offset = re.compile(r"\d+", re.ASCII)
    for name, field in (("query", columns[0]), ("positive", columns[1])):
        if not offset.fullmatch(field):
            return f"{name} {field!r} is not an offset"
    wrong = next(field for field in columns[2].split(",") if not offset.fullmatch(field))
    return f"negative {wrong!r} is not an offset"


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
