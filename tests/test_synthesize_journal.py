"""The journal of requests, and what a killed process leaves of it."""

from __future__ import annotations

import errno
import json

import pytest

from embedforge.errors import EmbedforgeError
from embedforge.synthesize.journal import Journal


def line(key: str, **values: object) -> dict[str, object]:
    return {
        "kind": "answer",
        "key": key,
        "step": "generate",
        "group": "sts",
        "text": f"é {key}",
        "attempts": 1,
        **values,
    }


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_a_torn_last_line_is_cut_off(tmp_path, cut):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for key in "abc":
            journal.append(line(key, tokens_in=2, tokens_out=3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path) as journal:
        assert journal.get("b") == line("b", tokens_in=2, tokens_out=3)
        assert (journal.get("c") is not None) == (cut == 1)  # only the line end was missing
        journal.append(line("d"))
        assert journal.get("d") is not None
    with Journal(path) as journal:
        assert len(journal) == 3 + (cut == 1)
        assert journal.spent.requests == len(journal)


def test_zeros_after_a_power_cut_are_cut_off(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(line("a"))
    with path.open("ab") as file:
        file.write(b"\0" * 100)
    with Journal(path) as journal:
        assert len(journal) == 1
    assert path.read_bytes().endswith(b"}\n")


def test_a_broken_line_before_the_last_is_an_error(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{{"kind": "ans\n{json.dumps(line("a"))}\n')
    with pytest.raises(EmbedforgeError, match="line 1: not a JSON object"), Journal(path):
        pass


def test_a_file_system_without_locks_is_not_taken_for_another_run(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="no flock on this system")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(EmbedforgeError, match=r"cannot be locked \(Operation not supported.*another --out"),
        Journal(tmp_path / "journal.jsonl"),
    ):
        pass


def test_a_full_disk_is_named_and_leaves_whole_lines(tmp_path):
    resource = pytest.importorskip("resource", reason="no limits of file sizes on this system")
    path = tmp_path / "journal.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with Journal(path) as journal:
            journal.append(line("a"))
            journal.append(line("b"))
            with pytest.raises(EmbedforgeError, match=r"journal.jsonl: cannot be written \(.*make room"):
                journal.append(line("c"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Journal(path) as journal:
        assert len(journal) == 2
