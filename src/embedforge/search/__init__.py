"""Search texts by meaning and by words, with the model that made their vectors.

Read `index.py` first: `Index` is what the command line and the server use. `folder_store` and `lance_store`
hold documents, `build` writes them, `files` keeps an index up to date with a folder, `run` has the verbs.
"""

from embedforge.search.build import build_index
from embedforge.search.document import Document, Hit, Mode, Snippet
from embedforge.search.index import Index
from embedforge.search.store import Facts

__all__ = ["Document", "Facts", "Hit", "Index", "Mode", "Snippet", "build_index"]
