"""The folder of a run: what it was asked, its time over all starts, and where it was made."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedforge import __version__
from embedforge.errors import EmbedforgeError
from embedforge.run_folder import (
    PHASES,
    Phases,
    claim,
    command,
    facts,
    first_difference,
    next_steps,
    versions,
)


def test_a_folder_goes_on_with_what_it_was_asked_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = {"folder": "/docs", "minutes": 5}
    assert claim(out, asked, "plan.json", "adapt") == {"asked": asked}
    (out / "result").touch()
    assert claim(out, asked, "plan.json", "adapt") == {"asked": asked}
    with pytest.raises(EmbedforgeError, match=r"minutes was 5, is 6; choose another --out"):
        claim(out, {**asked, "minutes": 6}, "plan.json", "adapt")


def test_a_run_that_stopped_before_its_first_result_is_begun_anew(tmp_path: Path) -> None:
    """A misspelt folder, say: the time that it took is no result."""
    claim(tmp_path / "out", {"folder": "dcos"}, "plan.json", "adapt")
    with pytest.raises(EmbedforgeError), Phases(tmp_path / "out").phase("reading"):
        raise EmbedforgeError("dcos: there is no such folder")
    assert (tmp_path / "out" / PHASES).exists()
    assert claim(tmp_path / "out", {"folder": "docs"}, "plan.json", "adapt") == {"asked": {"folder": "docs"}}


def test_a_folder_with_something_else_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(EmbedforgeError, match="not empty and no adapt run"):
        claim(tmp_path, {}, "plan.json", "adapt")
    with pytest.raises(EmbedforgeError, match=r"letter\.txt: this is a file"):
        claim(tmp_path / "letter.txt", {}, "plan.json", "adapt")


def test_phases_add_up_over_starts_and_errors(tmp_path: Path) -> None:
    first = Phases(tmp_path)
    with first.phase("reading"):
        time.sleep(0.11)
    with contextlib.suppress(KeyboardInterrupt), first.phase("training"):
        time.sleep(0.11)
        raise KeyboardInterrupt
    second = Phases(tmp_path)
    with second.phase("training"):
        time.sleep(0.11)
    assert list(second.seconds) == ["reading", "training"]
    assert second.seconds["training"] >= 0.2 > second.seconds["reading"] >= 0.1
    assert json.loads((tmp_path / PHASES).read_text()) == second.seconds
    assert second.minutes == pytest.approx(sum(second.seconds.values()) / 60, rel=0.2)


def test_a_phase_under_way_is_saved_with_what_it_took_so_far(tmp_path: Path) -> None:
    phases = Phases(tmp_path)
    with phases.phase("training"):
        time.sleep(0.11)
        phases.save()  # as at every checkpoint: a process that is killed now has lost nothing
        assert Phases(tmp_path).seconds["training"] >= 0.1


def test_phases_without_a_folder_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    phases = Phases()
    with phases.phase("reading"):
        pass
    assert phases.seconds == {"reading": 0.0}
    assert not list(tmp_path.iterdir())


def test_facts_name_what_is_installed_and_import_none_of_it() -> None:
    found = versions(("torch", "no-such-package"))
    assert list(found) == ["embedforge", "torch"]
    assert found["embedforge"] == __version__
    assert facts(device="cuda:1")["machine"].endswith(", cuda:1")
    code = "import sys, embedforge.run_folder as r; r.facts(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_the_first_difference_is_named_by_its_path() -> None:
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == ""
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a.1.b was 2, is 3"
    assert first_difference({"a": 1}, {"a": 1, "c": 2}) == "c was None, is 2"


def test_a_program_is_named_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `make quickstart` .venv is not on the PATH."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "embedforge"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert (command("embedforge"), command("python")) == (".venv/bin/embedforge", ".venv/bin/python")
    monkeypatch.chdir("/usr")
    assert command("embedforge") == str(programs / "embedforge")
    monkeypatch.setenv("PATH", str(programs))
    assert command("embedforge") == "embedforge"
    (programs / "embedforge").unlink()
    assert command("embedforge") == f"{programs / 'python'} -m embedforge"


@pytest.mark.parametrize("question", ["how deep?", 'say "$HOME" it\'s `x`\nand more', "--all of it", ""])
def test_what_a_run_prints_at_its_end_can_be_pasted(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: str(Path(sys.executable).parent / name))
    lines = next_steps(Path("my out"), Path("my out/model"), question).splitlines()
    search, python, help_ = (shlex.split(line, comments=True) for line in lines[-3:])
    assert search[:3] == ["embedforge", "search", "my out"]
    (asked,) = search[3:]
    assert asked
    assert not asked.startswith("-")
    assert "e.load('my out/model')" in python[2]
    assert help_ == ["embedforge", "--help"]
