"""Texts for rehearsals: invented places with a few facts each, so that questions, passages and answers fit."""

from __future__ import annotations

import random
from dataclasses import dataclass

_SYLLABLES = ("bar", "dor", "fen", "gal", "hol", "kir", "lun", "mor", "nes", "pol", "rav", "sed", "tol", "vem", "wis")
_KINDS = ("river", "castle", "harbour", "forest", "bridge", "market", "tower", "valley")
_FILLERS = (
    "Travellers often stop here in summer.",
    "The weather can be cold, and the roads are long.",
    "Many people of the region speak two languages.",
    "It was rebuilt after a fire.",
    "Boats carry timber, salt & wool (about 40 tons a year).",
    "A museum shows tools from the 19th century.",
)


@dataclass(frozen=True)
class Place:
    """One topic: three passages, two questions, and the answer that only the first passage holds."""

    name: str
    kind: str
    answer: str
    passages: tuple[str, ...]
    questions: tuple[str, str]


def places(count: int, seed: int = 7) -> list[Place]:
    """`count` places with different names, the same ones for the same seed (at most 105 of them)."""
    draw = random.Random(seed)
    names = [first + second for first in _SYLLABLES for second in _SYLLABLES if first != second]
    draw.shuffle(names)
    found = []
    for name, founder in zip(names[:count], names[::-1], strict=False):
        kind, title, answer = draw.choice(_KINDS), name.capitalize(), f"Saint {founder.capitalize()}"
        passages = (
            f"The {kind} of {title} was founded by {answer} in {draw.randrange(1100, 1900)}. {draw.choice(_FILLERS)}",
            f"{title} is a {kind} in the north. {' '.join(draw.sample(_FILLERS, 2))}",
            f"{draw.choice(_FILLERS)} Near {title} stands an old mill. {draw.choice(_FILLERS)}",
        )
        questions = (f"who founded the {kind} of {name}", f"where is {name} {kind}")
        found.append(Place(title, kind, answer, passages, questions))
    return found
