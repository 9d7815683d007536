"""Hard negatives: candidates from teachers' rankings, and the rule that keeps the safe ones.

One engine, `pipeline`, works on disk at any size; `run.mine` is the command on it, `refresh.refresh` mines
again with a model that is being trained, and `pipeline.mined_examples` is for programs that bring their own
documents and rankers.
"""

from embedforge.mine.keep import KeepRule

__all__ = ["KeepRule"]
