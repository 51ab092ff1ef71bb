"""Hard negatives as data: mined for a data set, with filters, to be trained on here or elsewhere."""

from ance_fast.mining.hard_negatives import mine_hard_negatives
from ance_fast.mining.limits import Limits
from ance_fast.mining.search import Mined, mine_rows

__all__ = ["Limits", "Mined", "mine_hard_negatives", "mine_rows"]
