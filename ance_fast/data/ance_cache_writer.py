"""Writing the folders that microsoft/ANCE's trainer and miner read, from token stores: see `ance_cache`.

Records keep the order of the store, so a row here is a record there. A file of records gets its `_meta` last, after
what belongs to it, so that a folder whose writing was interrupted is refused by its readers and not misread.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ance_fast.artifacts import atomic_file
from ance_fast.data.ance_cache import PASSAGES, record_file_name
from ance_fast.data.record_file import META, RecordFile, write_records
from ance_fast.data.text_lines import warn_counted
from ance_fast.data.token_store import TokenStore
from ance_fast.data.tokenize import Tokens
from ance_fast.errors import ArtifactError, ConfigError, DataError

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_COMPARED = 1 << 13


def write_ance_passages(folder: str | Path, store: TokenStore, pad: int, length: int | None = None) -> None:
    """Write `passages`, `passages_meta` and `pid2offset.pickle`; records hold `length` ids (the store's `max_length`).

    Ids must be numbers, or numbers after one letter ("D12" is 12 there), for their mapping to hold them; otherwise it
    is left out with a warning. Records that are there already and are those of the store stay.

    Raises `ConfigError`: a store of chunks, a passage longer than `length`; `ArtifactError`: the folder has records of
    something else, whose judgements and mined negatives would name others in the new ones.
    """
    if store.manifest.get("chunks") is not None:
        raise ConfigError(f"{store.path}: its rows are chunks; microsoft/ANCE cuts whole documents itself")
    folder = Path(folder)
    length = length or store.max_length

    def mapping() -> None:
        _write_mapping(folder / "pid2offset.pickle", list(store.ids))

    # Without its `_meta` a file of records was not finished.
    if not (folder / (PASSAGES + META)).exists():
        write_records(folder / PASSAGES, length, pad, _blocks(store), mapping)
    elif _holds(RecordFile(folder / PASSAGES), store, length):
        mapping()
    else:
        raise other_passages(folder)


def other_passages(folder: Path) -> ArtifactError:
    """The error of who would write passages over others."""
    return ArtifactError(
        f"{folder / PASSAGES}: holds other passages than those to be written, and the files beside it name records of "
        "them; choose another folder, or remove this one"
    )


def write_ance_queries(
    folder: str | Path,
    split: str,
    queries: TokenStore,
    qrels: Mapping[str, Mapping[str, int]],
    passages: TokenStore,
    pad: int,
    length: int | None = None,
) -> None:
    """Write `SPLIT-query`, its `_meta`, `SPLIT-qrel.tsv`, and for "dev", or "train" while there is no dev,
    `qid2offset.pickle`: the original writes train's first and dev's over it, and readers go by that.

    Of "train" only the judgements of grade 1 and above are written, as 1: the original takes no others. Judgements of
    passages that are not in the store are left out, counted in a warning. Raises `DataError` if none is left.
    """
    folder = Path(folder)
    ids = list(queries.ids)
    judged = [(query, passage) for query in ids for passage in qrels.get(query, {})]
    rows = passages.positions([passage for _, passage in judged])
    number = {query: row for row, query in enumerate(ids)}
    lines = []
    for (query, passage), row in zip(judged, rows.tolist(), strict=True):
        grade = qrels[query][passage]
        if row >= 0 and (split != "train" or grade > 0):
            lines.append(f"{number[query]}\t{row}\t{1 if split == 'train' else grade}\n")
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        first = judged[unknown[0]]
        what = "judgements name a passage that is not in the store and are left out"
        warn_counted(logger, len(unknown), what, f"query {first[0]!r}, passage {first[1]!r}")
    if qrels and not lines:
        raise DataError(f"{folder}: no judgement of split {split!r} names a query and a passage that are there")

    def judgements() -> None:
        with atomic_file(folder / f"{record_file_name(split, 'qrel')}.tsv") as staging:
            staging.write_text("".join(lines), encoding="ascii")
        if split == "dev" or (split == "train" and not (folder / "dev-query").exists()):
            _write_mapping(folder / "qid2offset.pickle", ids)

    file = folder / record_file_name(split, "query")
    write_records(file, length or queries.max_length, pad, _blocks(queries), judgements)


def _blocks(store: TokenStore) -> Iterator[Tokens]:
    for values, offsets in store.shards:
        yield Tokens(values, offsets, 0)


def _holds(records: RecordFile, store: TokenStore, length: int) -> bool:
    """Whether the records are the rows of the store."""
    if (len(records), records.length) != (len(store), length):
        return False
    row = 0
    for values, offsets in store.shards:
        for start in range(0, len(offsets) - 1, _COMPARED):
            here = offsets[start : start + _COMPARED + 1]
            found = records.tokens(np.arange(row, row + len(here) - 1))
            same = np.array_equal(np.diff(found.offsets), np.diff(here))
            if not same or not np.array_equal(found.values, values[here[0] : here[-1]]):
                return False
            row += len(here) - 1
    return True


def _write_mapping(path: Path, ids: Sequence[str]) -> None:
    letter = ids[0][:1] if ids and ids[0][:1].isalpha() else ""
    numbers = [identifier[len(letter) :] if identifier.startswith(letter) else "" for identifier in ids]
    # Numbers that would not come back as they are, such as 007 or one beyond 64 bits, are none.
    if not all(_NUMBER.fullmatch(text) for text in numbers):
        logger.warning("%s: not written, since not all ids are numbers; records are in the order of the store", path)
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as staging, open(staging, "wb") as file:
        pickle.dump({int(text): row for row, text in enumerate(numbers)}, file, protocol=4)
