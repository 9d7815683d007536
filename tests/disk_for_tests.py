"""A disk that is full: not a mock, the system itself refuses the writes."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """Let every write beyond `size` bytes of a file fail, as on a full disk, by the process's file limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
