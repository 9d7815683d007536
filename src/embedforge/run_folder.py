"""The folder of a run that goes on where it stopped: what was asked, and the check that it is asked again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, write_json


def claim(out: Path, asked: Mapping[str, Any], plan_file: str, kind: str) -> dict[str, Any]:
    """Note what is asked in a new folder, or check that an earlier run there was asked the same.

    Args:
        out: the folder of the run; made if it is not there.
        asked: the settings of the run, as JSON holds them.
        plan_file: the file in `out` that holds them, under "asked", beside what the run decides later on.
        kind: what a run is called in errors ("quickstart").

    Returns:
        What the file holds: {"asked": ...} and, of an earlier run, all that it decided.

    Raises:
        EmbedforgeError: the folder holds something else, or a run that was asked something else.
    """
    path = out / plan_file
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise EmbedforgeError(
                f"{out}: this folder is not empty and no {kind} run; choose another --out"
                if out.is_dir()
                else f"{out}: this is a file; --out names a folder"
            )
        write_json(path, {"asked": dict(asked)})
        return {"asked": dict(asked)}
    plan = read_object(path)
    if len(plan) == 1 and len(list(out.iterdir())) == 1:
        # It stopped before its first result (a misspelt folder, say): nothing to go on with or to lose.
        write_json(path, {"asked": dict(asked)})
        return {"asked": dict(asked)}
    before = plan.get("asked", {})
    for key, value in asked.items():
        if before.get(key) != value:
            raise EmbedforgeError(
                f"{out}: the run there had {key} = {before.get(key)!r}, this one has {value!r}; "
                "choose another --out, or remove the folder"
            )
    return plan


def next_steps(out: Path, question: str) -> str:
    """Return what to do with a finished run in `out`; `question` is one that its index may be asked."""
    shown, model = question.replace('"', "'")[:70], out / "run" / "model"
    return "\n".join(
        [
            f"Report: {out / 'report.html'}",
            "Next:",
            f'  embedforge search {out} "{shown}"',
            f"  embedforge evaluate {model} bm25 --tasks FOLDER_OF_DATASETS",
            f"  python -c \"import embedforge as e; print(e.load('{model}').encode_query('hello').shape)\"",
        ]
    )
