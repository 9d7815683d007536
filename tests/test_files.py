"""Writing that never leaves half a file, and reading that names what is wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedforge.errors import EmbedforgeError
from embedforge.files import (
    read_json,
    read_object,
    refuse_file,
    replace_folder,
    try_lock,
    write_json,
    write_text,
)


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_json_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "value.json"
    write_json(path, {"text": "Zürich 日本", "numbers": [1, 2.5]})
    assert read_json(path) == {"text": "Zürich 日本", "numbers": [1, 2.5]}
    assert "Zürich" in path.read_text(encoding="utf-8")
    assert names(path.parent) == ["value.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_space)
        with pytest.raises(OSError, match="No space"):
            write_text(path, "new")
    with pytest.raises(TypeError):
        write_json(path, {"not JSON": object()})
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', "line 2: not valid JSON"),
        (b"", "line 1: not valid JSON"),
        (b'{"a": "\xff"}', "byte 7 is not valid UTF-8"),
        (b"[1]", r"must hold a JSON object, found \[1\]"),
    ],
)
def test_a_broken_json_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(EmbedforgeError, match=rf"broken\.json.*{message}"):
        read_object(path)


def test_a_missing_json_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(EmbedforgeError, match=r"gone\.json: there is no such file"):
        read_json(tmp_path / "gone.json")
    with pytest.raises(EmbedforgeError, match="cannot be read"):
        read_json(tmp_path)


def test_a_new_folder_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "model"
    for number in (1, 2):
        with replace_folder(target, "mark") as folder:
            assert names(folder) == []
            (folder / "mark").write_text(str(number))
            (folder / f"only-{number}").touch()
    assert names(target) == ["mark", "only-2"]
    assert names(target.parent) == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_inside_leaves_the_old_folder(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "model"
    with replace_folder(target, "mark") as folder:
        (folder / "mark").write_text("old")
    with pytest.raises(type(failure)), replace_folder(target, "mark") as folder:  # noqa: PT012
        (folder / "mark").write_text("half")
        raise failure
    assert (target / "mark").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_failure_at_the_last_moment_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    with replace_folder(target, "mark") as folder:
        (folder / "mark").write_text("old")
    honest = Path.rename

    def rename(self: Path, other: Path) -> Path:
        if self.suffix == ".partial":
            no_space()
        return honest(self, other)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space"), replace_folder(target, "mark") as folder:
        (folder / "mark").write_text("new")
    assert (target / "mark").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    with pytest.raises(EmbedforgeError, match="something else"), replace_folder(thesis, "mark"):
        pytest.fail("the folder was given away")
    with (
        pytest.raises(EmbedforgeError, match="this is a file"),
        replace_folder(thesis / "chapter.txt", "mark"),
    ):
        pytest.fail("the file was given away")
    assert (thesis / "chapter.txt").read_text() == "years of work"
    assert names(tmp_path) == ["thesis"]


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path: Path) -> None:
    disk = tmp_path / "disk" / "model"
    disk.mkdir(parents=True)
    link = tmp_path / "model"
    link.symlink_to(disk)
    with replace_folder(link, "mark") as folder:
        (folder / "mark").write_text(json.dumps(1))
    assert link.is_symlink()
    assert names(disk) == ["mark"]


KILLED = """
import os, signal, sys
from pathlib import Path
from embedforge.files import replace_file, replace_folder

path, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "file":
    with replace_file(path) as partial:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
honest, renames = Path.rename, []

def rename(self, other):
    renames.append(honest(self, other))
    if moment == "between the renames":
        os.kill(os.getpid(), signal.SIGKILL)

Path.rename = rename
with replace_folder(path, "mark") as folder:
    (folder / "mark").write_text("half")
    if moment == "inside":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="only there a process can be asked whether it lives")
@pytest.mark.parametrize("moment", ["inside", "between the renames", "file"])
def test_what_a_killed_process_leaves_is_cleared_up_at_the_next_attempt(tmp_path: Path, moment: str) -> None:
    target = tmp_path / "run [1]"  # a pattern to glob
    if moment == "file":
        target.write_text("old")
    else:
        write_text(target / "mark", "old")
    foreign = [".run [1].1.partial", ".run [1].backup", ".run [1].mine.old", ".run 1.999999999.partial"]
    foreign.append(".run [1].b.drawn.999999999.old")  # of the folder `run [1].b`
    for name in foreign:  # the first one's process lives
        (tmp_path / name).touch()
    dead = subprocess.run([sys.executable, "-c", KILLED, str(target), moment], check=False)
    assert dead.returncode == -signal.SIGKILL
    assert names(tmp_path) != sorted([target.name, *foreign])
    if moment == "file":
        assert target.read_text() == "old"
        write_text(target, "new")
        assert target.read_text() == "new"
    else:
        with pytest.raises(KeyError), replace_folder(target, "mark"):  # noqa: PT012
            assert (target / "mark").read_text() == "old"
            raise KeyError
        assert (target / "mark").read_text() == "old"
    assert names(tmp_path) == sorted([target.name, *foreign])


# --- locks -------------------------------------------------------------------------------------------


def test_a_lock_says_who_holds_it_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "one"
    with try_lock(path, "the holder") as mine, try_lock(path, "another") as second:
        assert (mine, second) == (True, False)
        assert path.read_text() == "the holder"
    assert names(path.parent) == []
    with try_lock(path) as again:
        assert again


def test_a_lock_that_was_taken_away_between_opening_and_locking_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="no flock on this system")
    path, flock = tmp_path / "lock", fcntl.flock

    def late(file: object, how: int) -> None:
        if not late.__dict__.setdefault("called", False):
            late.__dict__["called"] = True
            path.unlink()  # as the last holder does
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with try_lock(path, "mine") as mine:
        assert mine
        assert path.read_text() == "mine"


def test_a_file_system_without_locks_is_everybodys_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="no flock on this system")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with try_lock(tmp_path / "lock") as mine, try_lock(tmp_path / "other") as other:
        assert mine
        assert other
    assert caplog.text.count("no locks on this file system (Operation not supported)") == 1


WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None  # as on Windows
import numpy
import embedforge.synthesize.journal, embedforge.train.vector_cache
from embedforge.run_folder import hold
from embedforge.search import Document, Index, build_index
from embedforge.text.contract import Contract
from pathlib import Path
with hold(Path("run")):
    build_index("index", numpy.eye(1), [Document("a", "a text")], model="m", contract=Contract())
print([hit.document.id for hit in Index.open("index").search("text", mode="lexical")])
print(sorted(path.name for path in Path(".").rglob("*lock*")))
"""


def test_all_that_locks_works_on_a_system_without_flock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_FCNTL]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines() == ["['a']", "[]"], result.stderr


def test_what_no_folder_can_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "file/a/b", "circle", "circle/a", "link", "a\0b"):
        with pytest.raises(EmbedforgeError, match=r"a file|a link to nothing|no path can hold"):
            refuse_file(tmp_path / name)
    for name in ("new", "new/a/b", ""):
        refuse_file(tmp_path / name)
