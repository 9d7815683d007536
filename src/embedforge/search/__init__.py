"""Search a folder of vectors and texts with the model that made them."""

from embedforge.search.index import Document, Hit, Index, build_index, fingerprint

__all__ = ["Document", "Hit", "Index", "build_index", "fingerprint"]
