"""Hard negatives: candidates from a teacher's vectors and BM25, and the rule that keeps the safe ones."""

from embedforge.mine.keep import KeepRule
from embedforge.mine.mine import mine_negatives

__all__ = ["KeepRule", "mine_negatives"]
