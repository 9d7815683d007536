"""Hard negatives: candidates from teachers' rankings, and the rule that keeps the safe ones.

`mine_negatives` works in memory on vectors that are there; `run.mine` on disk, from texts, at any size;
`refresh.refresh` mines again with a model that is being trained.
"""

from embedforge.mine.keep import KeepRule
from embedforge.mine.mine import mine_negatives

__all__ = ["KeepRule", "mine_negatives"]
