"""A teacher's vectors on disk: float16, memory-mapped, found by a 64-bit key of text, role and instruction.

FOLDER/teacher.json   who the teacher is, and how many numbers its vectors have
FOLDER/keys.u64       the keys, in the order of the vectors
FOLDER/vectors.f16    the vectors, one after the other

Both files only grow, a block at a time, the vectors first. What a kill leaves half written is cut off by the
next writer. One process writes at a time; any number read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.files import hash_of, lock_file, read_object, write_json
from embedforge.ranking import Floats
from embedforge.text.same import stable_hash

Keys = NDArray[np.uint64]


def key_of(role: str, instruction: str, text: str) -> int:
    """Return the 64-bit key of a text as a teacher sees it."""
    return stable_hash(role, instruction, text)


class VectorCache:
    """The vectors of one teacher."""

    def __init__(self, folder: Path) -> None:
        """Open a cache that is there, to read.

        Raises:
            EmbedforgeError: there is none, or its files are of no use.
        """
        self.folder = folder
        head = read_object(folder / "teacher.json")
        self.dim = int(head["dim"])
        self._keys, self._vectors = folder / "keys.u64", folder / "vectors.f16"
        self._refresh()

    @classmethod
    def of(cls, root: Path, identity: Mapping[str, Any]) -> VectorCache:
        """Open the cache of a teacher below `root`, or begin one.

        Args:
            root: may hold caches of other teachers.
            identity: what decides about the vectors, as JSON; equal identities share a cache.
        """
        folder = root / hash_of(identity)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "teacher.json").exists():
            write_json(folder / "teacher.json", {"identity": identity, "dim": 0})
        return cls(folder)

    def __len__(self) -> int:
        return len(self._sorted)

    def keys(self) -> set[int]:
        """Return the keys of all vectors."""
        return set(self._sorted.tolist())

    def lacks(self, keys: Sequence[int]) -> bool:
        """Say whether any of the keys has no vector."""
        return bool((self._places(keys) < 0).any())

    def vectors(self, keys: Sequence[int]) -> Floats:
        """Return the vectors of keys, float32 [keys, dim].

        Raises:
            EmbedforgeError: there is none for one of them.
        """
        places = self._places(keys)
        if (places < 0).any():
            raise EmbedforgeError(
                f"{self.folder}: the teacher's vectors of {int((places < 0).sum())} of {len(keys)} texts are "
                "not there; was the folder changed while the run was under way? Run it again with --resume"
            )
        return np.asarray(self._mapped[places], dtype=np.float32)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers away, and cut off what a killed one left half written."""
        with (self.folder / "lock").open("a") as lock:
            lock_file(lock, wait=True)
            self.dim = int(read_object(self.folder / "teacher.json")["dim"])
            self._cut()
            self._refresh()
            try:
                yield
            finally:
                self._refresh()

    def append(self, keys: Sequence[int], vectors: Floats) -> None:
        """Add a block, [keys, dim]; within `writing`.

        Raises:
            EmbedforgeError: vectors of another width than those before, or not finite; a full disk.
        """
        if not self.dim:
            self.dim = int(vectors.shape[1])
            head = read_object(self.folder / "teacher.json")
            write_json(self.folder / "teacher.json", head | {"dim": self.dim})
        if vectors.shape != (len(keys), self.dim):
            raise EmbedforgeError(
                f"{self.folder}: the teacher gave {vectors.shape[0]} vectors of {vectors.shape[1]} numbers "
                f"for {len(keys)} texts, and those before have {self.dim}; was the model behind its name "
                "exchanged?"
            )
        half = vectors.astype(np.float16)
        if not np.isfinite(half).all():
            raise EmbedforgeError(
                "the teacher gave a vector that is not finite (NaN or infinity); float32 may help, if it "
                "overflows: teacher: {model: ..., dtype: float32}"
            )
        try:
            for path, array in ((self._vectors, half), (self._keys, np.array(keys, dtype=np.uint64))):
                with path.open("ab") as file:
                    file.write(array.tobytes())
                    file.flush()
                    os.fsync(file.fileno())  # A key on the disk means that its vector is there too.
        except OSError as error:
            raise EmbedforgeError(
                f"{self.folder}: the teacher's vectors could not be written ({error.strerror}); free some "
                "space and run again with --resume: what is finished is kept"
            ) from error

    def _counted(self) -> int:
        """Return how many keys have a whole vector."""
        if not self.dim or not self._keys.exists() or not self._vectors.exists():
            return 0
        return min(self._keys.stat().st_size // 8, self._vectors.stat().st_size // (2 * self.dim))

    def _cut(self) -> None:
        rows = self._counted()
        for path, size in ((self._keys, 8), (self._vectors, 2 * self.dim)):
            if path.exists():
                with path.open("r+b") as file:
                    file.truncate(rows * size)

    def _refresh(self) -> None:
        """Read the keys, and map the vectors."""
        rows = self._counted()
        keys: Keys = np.fromfile(self._keys, dtype=np.uint64, count=rows) if rows else np.empty(0, np.uint64)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        self._mapped: NDArray[np.float16] = (
            np.memmap(self._vectors, dtype=np.float16, mode="r", shape=(rows, self.dim))
            if rows
            else np.empty((0, max(self.dim, 1)), dtype=np.float16)
        )

    def _places(self, keys: Sequence[int]) -> NDArray[np.int64]:
        """Return the row of each key, -1 where there is none."""
        wanted = np.array(keys, dtype=np.uint64)
        if not len(self._sorted):
            return np.full(len(wanted), -1, dtype=np.int64)
        found = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[found] == wanted, self._order[found], -1).astype(np.int64)
