"""The folder of a run: what it was asked, the time of its phases, and the facts of where it was made.

`hold` keeps a second process out of it. `claim` ties it to what was asked, so that a later start goes on with
the same run or is refused. `Phases` adds up seconds over all starts, in OUT/phases.json. `facts` are the
versions and the machine, for the JSON that a verb leaves. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embedforge import __version__
from embedforge.endpoint import without_password
from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, refuse_file, try_lock, write_json

PHASES = "phases.json"
LOCK = ".lock"
"""Who is at work in the folder, while it is."""
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "peft", "numpy")
"""What figures depend on, besides embedforge itself."""


def claim(
    out: Path,
    settings: Mapping[str, Any],
    plan_file: str,
    kind: str,
    again: str = "choose another --out, or remove the folder",
) -> dict[str, Any]:
    """Note what is asked in a new folder, or check that an earlier run there was asked the same.

    Args:
        out: the folder of the run; made if it is not there.
        settings: of the run, as JSON holds them.
        plan_file: the file in `out` that holds them, under "asked", beside what the run decides later on.
        kind: what a run is called in errors ("quickstart").
        again: the way out that an error names.

    Returns:
        What the file holds: {"asked": ...} and, of an earlier run, all that it decided.

    Raises:
        EmbedforgeError: the folder holds something else, or a run that was asked something else.
    """
    path = out / plan_file
    refuse_file(out)
    if not path.exists():
        if contents(out):
            raise EmbedforgeError(f"{out}: this folder is not empty and no {kind} run; choose another --out")
        write_json(path, {"asked": dict(settings)})
        return {"asked": dict(settings)}
    plan = read_object(path)
    if len(plan) == 1 and contents(out) <= {plan_file, PHASES}:
        # It stopped before its first result (a misspelt folder, say): nothing to go on with or to lose.
        write_json(path, {"asked": dict(settings)})
        return {"asked": dict(settings)}
    before = plan.get("asked", {})
    if difference := first_difference({key: before.get(key) for key in settings}, dict(settings)):
        raise EmbedforgeError(f"{out}: the run there is another one, {difference}; {again}")
    return plan


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Have a run's folder for this process alone while the block runs.

    OUT/.lock says who has it, and is gone afterwards. The lock itself is the system's: it ends with the
    process, however that ends, so there is nothing to clear up; see `try_lock`.

    Raises:
        EmbedforgeError: another process has it; names it, and the ways out.
    """
    refuse_file(out)
    is_new = not out.exists()
    try:
        with try_lock(out / LOCK, json.dumps(_who())) as mine:
            if not mine:
                raise EmbedforgeError(f"{out}: {_holder(out / LOCK)}")
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # It stays, but for a run that was refused.
                out.rmdir()


def _who() -> dict[str, Any]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    began = datetime.now().astimezone().isoformat(timespec="seconds")
    return {
        "process": os.getpid(),
        "machine": platform.node(),
        "command": without_password(command)[:500],
        "since": began,
    }


def _holder(path: Path) -> str:
    """Say who has a folder, and what to do."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        running = f"process {who['process']} on {who['machine']}, since {who['since']}: {who['command']}"
    except (OSError, ValueError, LookupError, TypeError):  # between its lock and its name
        running = "its name is not written yet"
    return f"another run is at work in this folder ({running}). Wait for it, end it, or choose another --out"


def contents(out: Path) -> set[str]:
    """Return the names of what is in a run's folder, the lock aside; none where there is no folder."""
    return {item.name for item in out.iterdir()} - {LOCK} if out.is_dir() else set()


def first_difference(old: Any, new: Any, key: str = "") -> str:
    """Say where two JSON values differ first, "" where they are equal.

    >>> first_difference({"stages": [{"steps": 10}]}, {"stages": [{"steps": 20}]})
    'stages.0.steps was 10, is 20'
    """
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(name, old.get(name), new.get(name)) for name in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(index), one, other) for index, (one, other) in enumerate(zip(old, new, strict=True))]
    else:
        return "" if old == new else f"{key} was {old!r}, is {new!r}"
    differences = (first_difference(one, other, f"{key}.{name}".lstrip(".")) for name, one, other in pairs)
    return next(filter(None, differences), "")


class Phases:
    """Seconds of each phase of a run, added up over all its starts.

    Kept in `folder`/phases.json, which is written when a phase ends, also by an error or Ctrl-C, and at every
    `save`: a killed process loses what came after. Without a folder they are kept in memory only.

    Args:
        folder: of the run; made at the first write. On several ranks only one may be given it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = None if folder is None else folder / PHASES
        known = read_object(self._file) if self._file is not None and self._file.exists() else {}
        self._seconds: dict[str, float] = {name: float(seconds) for name, seconds in known.items()}
        self._running: tuple[str, float] | None = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done inside; phases follow one another, they do not nest."""
        self._running = name, time.monotonic()
        try:
            yield
        finally:
            self._seconds = self._so_far()
            self._running = None
            self.save()

    def save(self) -> None:
        """Write the record, the phase under way included."""
        if self._file is not None:
            write_json(self._file, self.seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """Name -> seconds, in the order in which phases first began."""
        return {name: round(seconds, 1) for name, seconds in self._so_far().items()}

    @property
    def minutes(self) -> float:
        """Of all phases together."""
        return sum(self._so_far().values()) / 60

    def _so_far(self) -> dict[str, float]:
        if self._running is None:
            return self._seconds
        name, began = self._running
        return self._seconds | {name: self._seconds.get(name, 0.0) + time.monotonic() - began}


def facts(packages: Sequence[str] = PACKAGES, *, device: object = None) -> dict[str, Any]:
    """Say where and when figures are made: {"versions": ..., "machine": ..., "date": ...}.

    Args:
        packages: whose versions matter, besides embedforge and Python.
        device: that a model runs on, where there is one.
    """
    return {
        "versions": versions(packages),
        "machine": machine(device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the installed versions of embedforge and of those of `packages` that are there."""
    installed = {"embedforge": __version__}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def machine(device: object = None) -> str:
    """Describe this machine in a line: system, processor, CPUs that the process may use, Python, device.

    A GPU's own name is left out: only torch knows it.
    """
    allowed = getattr(os, "sched_getaffinity", None)
    cpus = len(allowed(0)) if allowed is not None else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}, {cpus} CPUs, Python {platform.python_version()}"
    return system if device is None else f"{system}, {device}"


def next_steps(out: Path, model: Path, question: str) -> str:
    """Return what to do with a finished run in `out`: lines that work as they are pasted.

    Args:
        out: of the run.
        model: its model's folder.
        question: one that the run's index may be asked.
    """
    embedforge, python = command("embedforge"), command("python")
    code = f"import embedforge as e; print(e.load({model.as_posix()!r}).encode_query('hello').shape)"
    return "\n".join(
        [
            f"Model: {model}",
            f"Report: {out / 'report.html'}",
            "Next:",
            f"  {search_command(out, question)}",
            f"  {python} -c {_pasted(code)}",
            f"  {embedforge} --help     # evaluate on your own data, encode, index other folders, serve",
        ]
    )


def search_command(out: Path, question: str) -> str:
    """Return how the index of a run is asked, a line that works as it is pasted."""
    shown = _pasted(" ".join(question.split())[:70].lstrip("- ") or "what you look for")
    return f"{command('embedforge')} search {_pasted(str(out))} {shown}"


def command(name: str) -> str:
    """Return how a program of this Python's environment is called here: by its name where PATH finds it.

    A virtual environment that was not activated is not on PATH; its program is then named by its path.
    """
    folder = Path(sys.executable).parent
    file = next((path for suffix in ("", ".exe") if (path := folder / f"{name}{suffix}").exists()), None)
    found = shutil.which(name)
    if found is not None and (file is None or Path(found).parent.resolve() == folder.resolve()):
        return name
    if file is None:
        return name if name == "python" else f"{_short(Path(sys.executable))} -m {name}"
    return _short(file)


def _short(path: Path) -> str:
    """Return a path from here where it lies below, quoted for a shell."""
    with contextlib.suppress(ValueError):
        return shlex.quote(str(path.absolute().relative_to(Path.cwd())))
    return shlex.quote(str(path))


def _pasted(text: str) -> str:
    """Quote a text for a shell; in double quotes, which every shell knows, where nothing in it is special."""
    if re.fullmatch(r"[\w./:-]+", text):
        return text
    return shlex.quote(text) if re.search(r'["$`\\!%]', text) else f'"{text}"'
