"""FAISS `index_factory` strings: creation, seeds, and how many vectors training needs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ance_fast.errors import ConfigError

logger = logging.getLogger(__name__)

EXAMPLES = "'Flat', 'HNSW32', 'IVF1024,Flat', 'IVF1024,PQ16', 'OPQ16,IVF1024,PQ16'"
# FAISS' own numbers: below 39 points a centroid its k-means warns, above 256 it drops the rest.
POINTS_RECOMMENDED = 39
POINTS_USED = 256
MIN_TRAINING_POINTS = 65_536
CAGRA_DEGREE = 64


def is_flat(factory: str) -> bool:
    """Whether `factory` means exact search over the vectors as they are."""
    return factory == "Flat"


def cagra_degree(factory: str) -> int | None:
    """The degree of the graph of "CAGRA" or "CAGRA32"; None for another factory. FAISS has no string for it."""
    found = re.fullmatch(r"CAGRA([1-9]\d*)?", factory)
    return int(found[1] or CAGRA_DEGREE) if found else None


def create(faiss: Any, factory: str, dim: int, seed: int) -> Any:
    """The empty inner-product FAISS index of `factory`, its clusterings seeded.

    Raises:
        ConfigError: FAISS cannot parse the string, or product quantisation cannot split `dim` evenly.
    """
    if re.search(r"(IVF|HNSW|NSG|PQ)0+(?!\d)", factory):
        raise ConfigError(f"index factory {factory!r} has a part of size 0; for example {EXAMPLES}")
    _check_splits(factory, dim)
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        hint = f"did you mean '{factory},Flat'? " if re.fullmatch(r"IVF\d+", factory) else ""
        raise ConfigError(
            f"FAISS cannot make an inner-product index of {factory!r} with {dim} dimensions: {hint}"
            f"examples are {EXAMPLES} ({faiss_message(error)})"
        ) from error
    for layer in layers(faiss, index):
        if hasattr(layer, "do_polysemous_training"):
            # Orders the codes for Hamming filters, which are not used here; it takes 100 times as long as k-means.
            layer.do_polysemous_training = False
        for clustering in (getattr(layer, "cp", None), getattr(getattr(layer, "pq", None), "cp", None)):
            if clustering is not None:
                _settle(clustering, seed)
    return index


def train(faiss: Any, index: Any, sample: np.ndarray, seed: int) -> None:
    """Train `index` on float32 [m, dim]. A rotation (OPQ) gets a seeded quantiser to work with in place of its own."""
    chain = index.chain if isinstance(index, faiss.IndexPreTransform) else None
    transforms = [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())] if chain else []
    rotations = [transform for transform in transforms if isinstance(transform, faiss.OPQMatrix)]
    quantisers = [faiss.ProductQuantizer(rotation.d_out, rotation.M, 8) for rotation in rotations]
    for rotation, quantiser in zip(rotations, quantisers, strict=True):
        _settle(quantiser.cp, seed)
        rotation.pq = quantiser
    try:
        index.train(sample)
    finally:
        for rotation in rotations:
            rotation.pq = None  # the pointer must not outlive this function


def _settle(clustering: Any, seed: int) -> None:
    clustering.seed = seed & 0x7FFFFFFF
    # FAISS would print a line for each of a quantiser's clusterings; `check_training` says it once.
    clustering.min_points_per_centroid = 1


def layers(faiss: Any, index: Any) -> Iterator[Any]:
    """The index and what it wraps (pre-transforms, refinement, storage of a graph), outermost first, downcast."""
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "storage"):
        inner = getattr(index, name, None)
        if isinstance(inner, faiss.Index):
            yield from layers(faiss, inner)
            return


def stored_layers(faiss: Any, index: Any) -> Iterator[Any]:
    """As `layers`, and what a refinement keeps to score its candidates again."""
    for layer in layers(faiss, index):
        yield layer
        if isinstance(layer, faiss.IndexRefine):
            yield faiss.downcast_index(layer.refine_index)


def lists(faiss: Any, index: Any) -> int:
    """Number of inverted lists, 0 without."""
    return next((int(layer.nlist) for layer in layers(faiss, index) if isinstance(layer, faiss.IndexIVF)), 0)


def training_size(faiss: Any, index: Any) -> int:
    """How many vectors are worth training on: what k-means uses for the lists, and enough for 8-bit quantisers."""
    return max(POINTS_USED * lists(faiss, index), MIN_TRAINING_POINTS)


def check_training(faiss: Any, index: Any, factory: str, points: int, source: str) -> None:
    """Refuse training on fewer points than centroids; warn below 39 a list. `source` begins the clause about `points`.

    Raises:
        ConfigError: too few; says how many are needed and which index fits.
    """
    nlist = lists(faiss, index)
    if not points:
        raise ConfigError(f"{factory!r} must be trained on vectors and there are none; use Flat")
    if points < nlist:
        raise ConfigError(
            f"IVF{nlist} needs at least {nlist} vectors ({POINTS_RECOMMENDED} a list recommended), "
            f"{source} {points}; use {_smaller_ivf(points)}Flat"
        )
    for layer in layers(faiss, index):
        centroids = int(getattr(getattr(layer, "pq", None), "ksub", 0))
        if points < centroids:
            raise ConfigError(
                f"product quantisation in {factory!r} needs at least {centroids} vectors "
                f"({POINTS_RECOMMENDED * centroids} recommended), {source} {points}; use SQ8 in its place, or Flat"
            )
    if points < POINTS_RECOMMENDED * nlist:
        logger.warning(
            "%s: trained on %d vectors, %d a list; %d a list are recommended, the lists will be uneven",
            factory, points, points // nlist, POINTS_RECOMMENDED,
        )  # fmt: skip


def faiss_message(error: Exception) -> str:
    """FAISS' own words without the C++ signature and place in front of them."""
    text = " ".join(str(error).split())
    return re.sub(r"^Error in .*? at \S+?:\d+: (Error: )?", "", text)


def _smaller_ivf(points: int) -> str:
    fitting = points // POINTS_RECOMMENDED
    return f"IVF{1 << (fitting.bit_length() - 1)} or " if fitting >= 2 else ""


def _check_splits(factory: str, dim: int) -> None:
    for part in factory.split(","):
        if reduced := re.fullmatch(r"(?:O?PQ\d+_|PCAW?R?|ITQ|RR)(\d+)", part):
            if part.startswith("OPQ"):
                _check_split(part.partition("_")[0], dim)
            dim = int(reduced[1])
        elif re.match(r"O?PQ\d+", part):
            _check_split(part, dim)


def _check_split(part: str, dim: int) -> None:
    name, pieces = re.match(r"(O?PQ)(\d+)", part).groups()  # type: ignore[union-attr]
    if dim % int(pieces):
        fitting = [str(m) for m in range(1, dim + 1) if dim % m == 0 and m <= max(64, int(pieces))]
        raise ConfigError(
            f"{name}{pieces} cuts a vector into {pieces} equal parts, which {dim} dimensions do not allow; "
            f"{name} with {', '.join(fitting)} would"
        )
