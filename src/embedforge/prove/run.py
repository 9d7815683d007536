"""A folder in; a model that fits it better, the proof of that, and a search index out. Read this first.

`embedforge quickstart`, `adapt` and `distill` are verbs on it: they differ in what they take where nothing is
said, and distill has a teacher that is compared too. Whether the folder's text becomes pairs of questions and
answers or plain text is for the recipe's objectives to say. Each phase leaves its result in OUT and is
skipped when that is there, so an interrupted run goes on:

    OUT/prove.json          what was asked, and the plan: recipe, sizes, seconds spent
    OUT/data/               what was read of the folder, and what is trained on (read it)
    OUT/vectors/            what each system made of held-out text, until the report is written
    OUT/run/                the training run: log, checkpoints, and what training made
    OUT/model/              that, or the base as it came where it finds more (prove/keep.py)
    OUT/index/              the folder's passages, searchable
    OUT/report.html, OUT/report.json
"""

from __future__ import annotations

import itertools
import math
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from embedforge.console import note, say, stdout
from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, write_json
from embedforge.prove.keep import MODEL, model_of
from embedforge.prove.phases import FIRST, PLAN, REPORT, Run
from embedforge.prove.table import terminal_table
from embedforge.prove.taught import RECIPE
from embedforge.prove.texts import check_unchanged
from embedforge.run_folder import PHASES, claim, hold, next_steps
from embedforge.runtime import keep_freed_memory

QUICKSTART, TINY = "quickstart", "tiny"
OURS = (PLAN, PHASES, "base", "data", "vectors", FIRST, "run", MODEL, "index", "report.html", REPORT)


def quickstart(folder: Path | None, out: Path, *, minutes: float = 5.0, **settings: Any) -> dict[str, Any]:
    """Prove the two stages of NV-Embed on pairs that a folder's structure gives; arguments as of `prove`.

    The folder is this Python's standard library where there is none. The recipe is "quickstart", which starts
    from the embedder in the package; with a base of one's own "tiny", which makes an embedder of a decoder.
    """
    folder = folder or Path(sysconfig.get_paths()["stdlib"])
    settings["recipe_name"] = settings.get("recipe_name") or (TINY if settings.get("base") else QUICKSTART)
    return prove(folder, out, verb="quickstart", minutes=minutes, **settings)


def distill(teacher: str, student: str, text: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """Learn a teacher's vectors of a folder's text, and prove it; further arguments as of `prove`.

    Args:
        teacher: a model that `load` takes, or an endpoint `http://HOST/v1#MODEL`.
        student: the decoder to start from, taken whole; the recipe "distill-small" prunes its own.
        text: the folder.
        out: of the run.
        settings: minutes, recipe_name, overrides, seed, device, restart.
    """
    settings["recipe_name"] = settings.get("recipe_name") or RECIPE
    settings["overrides"] = ["model.prune=null", *settings.get("overrides", ())]
    settings.setdefault("minutes", 30.0)
    return prove(text, out, verb="distill", base=student, teacher=teacher, **settings)


def adapt(folder: Path, out: Path, *, minutes: float = 10.0, **settings: Any) -> dict[str, Any]:
    """Prove LLM2Vec's stages on a folder's text alone; arguments as of `prove`."""
    return prove(folder, out, verb="adapt", minutes=minutes, **settings)


def prove(
    folder: Path,
    out: Path,
    *,
    verb: str,
    minutes: float,
    base: str | None = None,
    teacher: str | None = None,
    recipe_name: str | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Run all phases, print the short table, and return what report.json holds.

    Args:
        folder: of text, Markdown, HTML, PDF or source code; see `embedforge.documents.read_folder`.
        out: a new folder, or that of an interrupted run with the same settings.
        verb: which command this is, for messages.
        minutes: the whole run's time; training takes the steps that fit, at most the recipe's, and where that
            is not enough fewer texts are compared and indexed.
        base: the decoder to start from; the recipe's, or the bundled one, when None.
        teacher: whose vectors the stages that distil learn, and which is compared; the recipe's own, which is
            not compared, when None.
        recipe_name: a shipped recipe or a YAML file; chosen by the base when None. Its sources are replaced
            by this folder's.
        overrides: "key=value" changes of the recipe.
        seed: of what is held out, drawn, trained and resampled.
        device: "cpu", "cuda", ...; CUDA where there is one when None.
        restart: start anew; what an earlier run left in `out` is moved to a folder in it.

    Raises:
        EmbedforgeError: too little text, a base that cannot do what the recipe asks, `out` holds a run with
            other settings, or one whose folder has changed since.
        KeyboardInterrupt: after Ctrl-C or SIGTERM during training, with the state saved.
    """
    if not 0 < minutes < math.inf:
        raise EmbedforgeError(f"--minutes is the time of the whole run, a number above 0; got {minutes:g}")
    keep_freed_memory()
    asked = {
        "verb": verb,
        "folder": str(folder.resolve()),
        "base": base,
        "recipe": recipe_name,
        "set": list(overrides),
        "minutes": minutes,
        "seed": seed,
        **({} if teacher is None else {"teacher": teacher}),
    }
    again = "choose another --out, or start anew with --restart"
    with hold(out):
        if restart:
            _set_aside(out, asked)
        run = Run(out, claim(out, asked, PLAN, verb, again), device)
        if (out / REPORT).exists():
            check_unchanged(out / "data", folder)
        else:
            threads = torch.get_num_threads()
            try:
                run.go()
            finally:
                torch.set_num_threads(threads)
    report = read_object(out / REPORT)
    stdout().print(terminal_table(report))
    if verdict := report.get("kept", {}).get("verdict"):
        stdout().print(verdict, style="bold red", soft_wrap=True)
    say(next_steps(out, model_of(out), report["question"] or "what you look for"), stdout())
    return report


def _set_aside(out: Path, asked: Mapping[str, Any]) -> None:
    """Begin anew in the folder of an earlier run of ours, whose results move to a folder in it.

    Nothing is deleted: the new run may fail, and the old one may have been worth keeping.
    """
    before = read_object(out / PLAN).get("asked") if (out / PLAN).exists() else None
    if not isinstance(before, dict) or "verb" not in before:
        return  # not ours: `claim` says what is the matter
    left = [name for name in OURS if (out / name).exists()]
    if not set(left) <= {PLAN, PHASES}:
        aside = next(path for n in itertools.count(1) if not (path := out / f"earlier-{n}").exists())
        aside.mkdir()
        for name in left:
            (out / name).rename(aside / name)
        note(f"what the earlier run left is in {aside}; remove it if you do not need it")
    (out / PHASES).unlink(missing_ok=True)
    write_json(out / PLAN, {"asked": dict(asked)})
