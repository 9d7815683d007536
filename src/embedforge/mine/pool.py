"""The documents negatives are mined from, and which of them count as the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np

from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.ranking import Indices


def normal(text: str) -> str:
    """Reduce a text to what makes it equal to another: no case, one space for any white space."""
    return " ".join(text.lower().split())


def text_key(text: str) -> int:
    """Return 64 bits that texts share if they are equal (see `normal`)."""
    return _hash(normal(text))


def id_key(name: str) -> int:
    """Return 64 bits of a document's id, 0 for "", which is none."""
    return _hash(name) if name else 0


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Pool:
    """Documents by row. Rows of equal text (see `normal`) share a class, the first such row's number."""

    def __init__(self, documents: Mapping[str, str]) -> None:
        self.ids = list(documents)
        self.texts = list(documents.values())
        self._row_of_id = {document_id: row for row, document_id in enumerate(self.ids)}
        self._class_of_text: dict[str, int] = {}
        classes = [self._class_of_text.setdefault(normal(text), row) for row, text in enumerate(self.texts)]
        self._classes = np.array(classes, dtype=np.int64)

    def classes_of(self, texts: Sequence[str], ids: Sequence[str] = ()) -> set[int]:
        """Return the classes of the documents that have one of these texts or ids; others are skipped."""
        by_text = {self._class_of_text[key] for key in map(normal, texts) if key in self._class_of_text}
        by_id = {int(self._classes[self._row_of_id[key]]) for key in ids if key in self._row_of_id}
        return by_text | by_id

    def positives(self, example: Example) -> Indices:
        """Return the rows of an Example's positives, found by id or else by text.

        Raises:
            EmbedforgeError: there is none, or one is not among the documents.
        """
        if not example.positives:
            raise EmbedforgeError(f"query '{example.query:.80}' has no positive to judge candidates by")
        rows = []
        for place, text in enumerate(example.positives):
            document_id = example.positive_ids[place] if example.positive_ids else ""
            row = self._row_of_id.get(document_id, self._class_of_text.get(normal(text)))
            if row is None:
                raise EmbedforgeError(
                    f"query '{example.query:.80}': its positive '{document_id or text[:80]}' is not among "
                    f"the {len(self.ids)} documents, so its score is not known. Add it to the documents."
                )
            rows.append(row)
        return np.array(rows, dtype=np.int64)

    def classes(self, rows: Indices) -> Indices:
        """Return the classes of rows, of the same shape; what a negative row gets means nothing."""
        return self._classes[rows]
