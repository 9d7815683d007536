"""Drawing by a seed and a name, which no other name has a say in.

The hash is one of its own, and stays: what is held out of a folder hangs on it, and a model that was trained
on the rest has to be tested on the same part by a later version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def keyed_hash(seed: int, key: str) -> bytes:
    """Return a hash that orders keys by chance, the same on every machine for one seed."""
    return hashlib.blake2b(f"{seed}:{key}".encode(errors="surrogateescape"), digest_size=8).digest()


def keyed_fraction(seed: int, key: str) -> float:
    """Return a number in [0, 1), evenly distributed over keys; in the order of `keyed_hash`."""
    return int.from_bytes(keyed_hash(seed, key)[:6]) / 2**48


def draw(keys: Iterable[str], limit: int, seed: int) -> set[str]:
    """Draw at most `limit` of the keys by the seed, whatever order they come in."""
    return set(sorted(keys, key=lambda key: keyed_hash(seed, key))[:limit])
