"""The journal of a run: every request that was answered or given up, on the disk before all else.

It is the only record of what was paid for. Each line is a JSON object:

| key | of an answer | of a failure | of a finding about the endpoint |
| --- | --- | --- | --- |
| kind | "answer" | "failure" | "dialect" |
| key | hash of prompt, seed, model and sampling settings | the same | - |
| step, group | which prompt | the same | - |
| text, finish | the answer, and why it ended ("stop", "length") | - | - |
| error, message | - | class ("refused" is final), and the endpoint's words | - |
| tokens_in, tokens_out, estimated | as the endpoint counted; estimated if it did not | - | - |
| attempts, seconds, time | requests sent, time waited, seconds since 1970 | the same | time |
| dialect | - | - | what the endpoint understands (`client.Dialect`) |

A process that is killed can leave half a line at the end, nowhere else: it is cut off when the journal is
opened again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from embedforge.errors import EmbedforgeError
from embedforge.files import lock_file

REFUSED = "refused"
"""A failure for good: the same request would be refused again."""
UNCONFIRMED = "unconfirmed"
"""A refusal by an endpoint that may refuse all requests; if it does not, a later line makes it final."""


@dataclass(slots=True)
class Spent:
    """What a journal's lines add up to."""

    requests: int = 0
    """Sent over the network, those that failed and were sent again included."""
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: int = 0
    """Answers whose tokens the endpoint did not count."""

    def add(self, line: dict[str, Any]) -> None:
        """Count one line."""
        self.requests += int(line.get("attempts", 0))
        self.tokens_in += int(line.get("tokens_in", 0))
        self.tokens_out += int(line.get("tokens_out", 0))
        self.estimated += bool(line.get("estimated", False))


@dataclass(slots=True)
class Journal:
    """An open journal; one process has it at a time. Only offsets of lines are held in memory, not answers.

    Raises:
        EmbedforgeError: another process has it, it cannot be locked, or a line before the last is no JSON.
    """

    path: Path
    spent: Spent = field(default_factory=Spent)
    by_group: defaultdict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))
    dialect: dict[str, Any] | None = None
    """What was last found out about the endpoint."""
    _offsets: dict[str, int] = field(default_factory=dict)
    _file: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        _lock(self._file, self.path)
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a line that could not be written: `append` has said so
                self._file.close()  # and with it the lock
            self._file = None

    def __len__(self) -> int:
        """Requests that are not asked again."""
        return len(self._offsets)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer to a request, or its refusal; None where it is still to be asked."""
        offset = self._offsets.get(key)
        if offset is None:
            return None
        file = self._open()
        file.seek(offset)
        line: dict[str, Any] = json.loads(file.readline())
        return line

    def append(self, line: dict[str, Any]) -> None:
        """Write a line to the disk, wait until it is there, and count it.

        Raises:
            EmbedforgeError: it cannot be written, as on a full disk.
        """
        file = self._open()
        try:
            offset = file.seek(0, os.SEEK_END)
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise EmbedforgeError(
                f"{self.path}: cannot be written ({error.strerror}); make room, and the same command goes on"
            ) from None
        self._count(line, offset)

    def _open(self) -> IO[bytes]:
        if self._file is None:
            raise ValueError("the journal is not open")
        return self._file

    def _read(self) -> None:
        for number, offset, raw in self._lines():
            line = _parse(raw)
            if line is not None and raw.endswith(b"\n"):
                self._count(line, offset)
            elif self._is_last(offset, raw):
                self._repair(offset, line)
                return
            else:
                raise EmbedforgeError(
                    f"{self.path}, line {number}: not a JSON object, found {raw[:60]!r}; "
                    "restore or remove this line"
                )

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield number, offset and bytes of every line."""
        file, offset, number = self._open(), 0, 0
        while True:
            file.seek(offset)
            raw = file.readline()
            if not raw:
                return
            number += 1
            yield number, offset, raw
            offset += len(raw)

    def _is_last(self, offset: int, raw: bytes) -> bool:
        return offset + len(raw) == self._open().seek(0, os.SEEK_END)

    def _repair(self, offset: int, line: dict[str, Any] | None) -> None:
        """Cut off half a line; a whole one that lacks only its end gets it."""
        file = self._open()
        if line is None:
            file.truncate(offset)
        else:
            file.write(b"\n")  # at the end, where all is written
            self._count(line, offset)
        file.flush()
        os.fsync(file.fileno())

    def _count(self, line: dict[str, Any], offset: int) -> None:
        if line["kind"] == "dialect":
            self.dialect = line["dialect"]
            return
        self.spent.add(line)
        self.by_group[f"{line['group']}, {line['step']}"].add(line)
        if line["kind"] == "answer" or line["error"] == REFUSED:
            self._offsets[line["key"]] = offset


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "kind" in value else None


def _lock(file: IO[bytes], path: Path) -> None:
    """Make sure that no other process asks, and pays, for the same; released when the process ends."""
    why = "another synthesize run is writing to it; wait for it to end, or"
    try:
        if lock_file(file):
            return
    except OSError as error:
        why = f"it cannot be locked ({error.strerror}), so that no two runs pay for the same;"
    file.close()
    raise EmbedforgeError(f"{path}: {why} use another --out")
