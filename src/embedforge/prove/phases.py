"""The phases of a run of `prove`, each of which leaves its result in OUT and is skipped when it is there."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from embedforge.console import add_row, advancing, note, progress_bar, say, stderr
from embedforge.data.example import Example
from embedforge.documents import Folder, Pair
from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, write_json
from embedforge.mine.teachers import open_teacher
from embedforge.model.folder import find_folder
from embedforge.prove.distilling import (
    encode_by_teacher,
    measure_teacher,
    taught_texts,
    teaching_seconds,
    with_across,
)
from embedforge.prove.figures import figures_of
from embedforge.prove.fusion import best_mode
from embedforge.prove.held_out import HeldOut, held_out_of, is_code
from embedforge.prove.index import index_folder
from embedforge.prove.keep import Kept, better_of, keep_model, save_as_it_came
from embedforge.prove.page import build_report
from embedforge.prove.plan import (
    Measured,
    Sizes,
    encoding_seconds,
    limited,
    measure,
    measure_again,
    reserve,
    seconds_of_stages,
    shortened,
    sizes_for,
    tokens_of_system,
)
from embedforge.prove.recipes import choose_recipe, trains_on_pairs, with_sources
from embedforge.prove.systems import (
    AS_IT_CAME,
    TEACHER,
    TRAINED,
    Build,
    Encoded,
    came_as_embedder,
    encode_held_out,
    how_it_came,
    require_head,
    system_after_mntp,
    trained_systems,
    untrained_systems,
    without_adapter,
)
from embedforge.prove.taught import distils, own_instruction, with_teacher
from embedforge.prove.texts import changes, check_written, hashes, key_of, read_texts, stamps
from embedforge.prove.training_data import TRAINING_FILES, split_dev, write_questions, write_training_data
from embedforge.recipe import Recipe, Teacher, parse_recipe
from embedforge.report.page import write_report
from embedforge.run_folder import Phases, facts, search_command
from embedforge.runtime import pick_device, release_freed_memory
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.train.prune import vocabulary_examples, with_pruned_base
from embedforge.train.run import Interrupted, train
from embedforge.train.stages import prepare_model

PLAN, REPORT = "prove.json", "report.json"
FIRST = "as-it-came"
"""Folder of the base as an embedder, while the index is made by it."""
AT_ONCE = 15.0
"""Seconds for the index that is there before training."""
PAIRS_NEEDED = 50
OVERRUN = 1.2
"""A run that takes this many times what was asked says where the time went."""


class Run:
    """The phases, in their order; `plan` is what PLAN holds."""

    def __init__(self, out: Path, plan: dict[str, Any], device: str | None) -> None:
        self.out, self.plan, self.device = out, plan, device
        self.data, self.folder = out / "data", Path(plan["asked"]["folder"])
        self.seed, self.seconds = int(plan["asked"]["seed"]), 60.0 * plan["asked"]["minutes"]
        self.teacher: str | None = plan["asked"].get("teacher")
        self.phases = Phases(out)
        self.console = stderr()

    @property
    def recipe(self) -> Recipe:
        """As planned: with the folder's sources, and the most steps that are taken."""
        return parse_recipe(self.plan["recipe"], str(self.out / PLAN))

    @property
    def measured(self) -> Measured:
        """Of the machine and the folder, as last measured."""
        return Measured(**self.plan["measured"])

    @property
    def kept(self) -> Kept:
        """Which model is the run's."""
        return Kept(**self.plan["kept"])

    @property
    def left(self) -> float:
        """Seconds of the run that are not spent yet, in any of its starts."""
        return self.seconds - 60 * self.minutes

    @property
    def minutes(self) -> float:
        """Of all starts; what training noted of a start that was killed is more than this run knows of it."""
        trained = 60 * Phases(self.out / "run").minutes - self.phases.seconds.get("train", 0.0)
        return self.phases.minutes + max(0.0, trained) / 60

    def _decide(self, **decided: Any) -> None:
        self.plan = {**self.plan, **decided}
        write_json(self.out / PLAN, self.plan)

    def go(self) -> None:
        """Go through all phases; what an earlier start has finished is only read."""
        phase = self.phases.phase
        with phase("read"):
            texts = self.read()
        with phase("plan"):
            self.settle(texts)
        with phase("before"):
            held_out, encoded = self.compare_untrained(texts)
        if came_as_embedder(self.recipe):
            with phase("index at once"):
                self.index_at_once(texts, held_out, encoded[AS_IT_CAME])
        with phase("train"):
            self.train(texts)
        with phase("after"):
            held_out, encoded = self.compare_trained(texts, held_out, encoded)
        with phase("index"):
            self.index(texts, held_out, encoded)
        with phase("report"):
            overrun = self.report(texts, held_out, encoded)
        self.finish(overrun)

    # --- the folder --------------------------------------------------------------------------------------

    def read(self) -> Folder:
        """Choose the recipe, read the folder, hold some of it out, and write what is trained on."""
        asked = self.plan["asked"]
        if "recipe" not in self.plan:
            recipe = choose_recipe(
                asked["base"],
                asked["recipe"],
                asked["set"],
                seed=self.seed,
                device=self.device,
                console=self.console,
            )
            if self.teacher is not None:
                recipe = with_teacher(recipe, self.teacher)
            texts_to_keep = vocabulary_examples(recipe, Path(asked["recipe"] or "").parent)
            recipe = with_pruned_base(recipe, self.out, texts_to_keep)
            self.plan["recipe"] = recipe.model_dump(mode="json")  # written once the folder could be read
        with progress_bar(self.console) as bar:
            task = add_row(bar, "reading")
            texts = read_texts(
                self.data,
                self.folder,
                max_tokens=self.recipe.contract.max_tokens,
                minutes=asked["minutes"],
                seed=self.seed,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        self._decide()
        self._say(texts)
        return texts

    def _say(self, texts: Folder) -> None:
        for notice in texts.notices:
            note(notice, self.console)
        unread = texts.counts.get("files_over_limit", 0)
        if unread:
            note(
                f"{unread:,} files, drawn by the seed, are not read: there is more text than "
                f"{self.plan['asked']['minutes']:g} minutes are good for. More --minutes read more.",
                self.console,
            )
        learnt = f"{len(texts.train):,} passages and {len(texts.sentences):,} sentences"
        if trains_on_pairs(self.recipe):
            learnt = f"{len(texts.train_pairs):,} questions with their answers"
        elif distils(self.recipe):
            learnt += f", {len(texts.train_pairs):,} questions"
        say(
            f"{self.folder}: {learnt} to train on; {len(texts.held_out):,} passages and {len(texts.pairs):,} "
            "questions held out",
            self.console,
        )

    def settle(self, texts: Folder) -> None:
        """Write the training files, measure the machine, and decide what fits the time."""
        recipe, parts, (pairs, _) = self.recipe, False, self._dev(texts)
        self._check_base(recipe.model.base)
        if trains_on_pairs(recipe):
            _require_pairs(self.folder, texts)
            with self.console.status("mining hard negatives"):
                parts = write_training_data(self.data, pairs, code=is_code(pairs), seed=self.seed)
            if "trained on" in self.plan:
                check_written(self.data, self.plan["trained on"])
            else:
                self.plan["trained on"] = hashes(self.data, TRAINING_FILES)
        if distils(recipe):
            write_questions(self.data, pairs)
        if "measured" in self.plan:
            torch.set_num_threads(self.measured.threads)  # so that a resumed run is the same to the bit
            return
        with self.console.status("measuring the machine"):
            model = prepare_model(without_adapter(recipe), self.device)
            require_head(recipe, model)
            measured = measure(model, texts, self.seed)
            if self.teacher is not None:
                by_teacher = measure_teacher(self.teacher, texts, self.device, self.seed)
                measured = replace(measured, taught_per_second=by_teacher)
        torch.set_num_threads(measured.threads)
        trainable = replace(texts, train_pairs=pairs)
        taught = taught_texts(trainable, measured.taught_per_second or math.inf, self.seconds)
        recipe = limited(with_sources(recipe, parts=parts, taught=taught), trainable, measured)
        compared = measured.teacher_systems + len(untrained_systems(recipe, None))
        compared += len(trained_systems(recipe, self.out, None))
        sizes = sizes_for(recipe, texts, measured, self.seconds, compared)
        speed = f"{measured.tokens_per_second:,.0f} tokens/s encoded here, by {measured.threads} threads"
        say(f"recipe {recipe.name}: {speed}", self.console)
        needed = encoding_seconds(recipe, sizes, measured, compared) + reserve(self.seconds)
        if needed > self.left:
            note(
                f"comparing and indexing the fewest texts that say anything takes about {needed / 60:.0f} "
                f"minutes here, and {max(0.0, self.left) / 60:.1f} are left: this takes longer than asked",
                self.console,
            )
        self._decide(recipe=recipe.model_dump(mode="json"), sizes=asdict(sizes), measured=asdict(measured))

    def _check_base(self, base: str) -> None:
        """Note the files of the base, or refuse to go on where they have changed."""
        folder = find_folder(base)
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        if "base files" not in self.plan:
            self.plan = {**self.plan, "base files": stamps(folder, files)}
            return
        changed = changes(folder, self.plan["base files"], files)
        if changed:
            raise EmbedforgeError(
                f"{base}: the base is not what it was when the run in {self.out} began: files {changed}. "
                "Start anew with --restart, or choose another --out"
            )

    def _dev(self, texts: Folder) -> tuple[list[Pair], list[Example]]:
        """Keep some training pairs apart, where the recipe measures on them while it trains."""
        if self.recipe.training.eval_steps is None or self.recipe.training.held_out:
            return texts.train_pairs, []
        return split_dev(texts.train_pairs, self.recipe.contract.default_instruction, self.seed)

    # --- before and after --------------------------------------------------------------------------------

    def compare_untrained(self, texts: Folder) -> tuple[HeldOut, dict[str, Encoded]]:
        """Encode held-out text with what there is before training."""
        sizes = Sizes(**self.plan["sizes"])
        held_out = held_out_of(texts, sizes, self.seed)
        encoded, speed = self._encode(untrained_systems(self.recipe, self.device), held_out, sizes)
        if self.teacher is not None:
            encoded[TEACHER] = self._encoded_by_teacher(held_out, sizes)
        measured = replace(self.measured, tokens_per_second=speed or self.measured.tokens_per_second)
        self._decide(measured=asdict(measured))
        return held_out, encoded

    def index_at_once(self, texts: Folder, held_out: HeldOut, encoded: Encoded) -> None:
        """Index the folder with the embedder as it came, so that one need not wait for training to search."""
        if self.plan.get("kept"):  # the index is that of the end by now
            return
        most = Sizes(**self.plan["sizes"]).indexed
        most = min(most, int(AT_ONCE * self.measured.tokens_per_second / self.measured.passage))
        searched = best_mode(held_out, encoded, seed=self.seed)
        made_of = key_of(self.data, self.plan["recipe"], self.plan["sizes"], FIRST)
        model = self.out / FIRST
        if not (model / CONTRACT).exists():
            save_as_it_came(self.recipe, model)
        index_folder(
            self.out, model, texts, held_out, encoded, most, searched, made_of, self.device, self.console
        )
        say(f"to search while this trains: {search_command(self.out, held_out.question)}", self.console)

    def train(self, texts: Folder) -> None:
        """Train as many steps as leave time for the rest."""
        recipe, sizes, left = self.recipe, Sizes(**self.plan["sizes"]), self.left
        if self.measured.taught_per_second and not (self.out / "run" / "stages").exists():
            taught = {source.path: source.cap or 0 for source in recipe.stages[0].mix.sources}
            left -= teaching_seconds(texts, taught, self.measured.taught_per_second)
        after = len(trained_systems(recipe, self.out / "run", None))
        seconds = seconds_of_stages(
            recipe, sizes, texts, self.measured, seconds=self.seconds, left=left, systems=after
        )
        release_freed_memory()
        try:
            train(
                recipe,
                self.out / "run",
                resume=True,
                device=self.device,
                source_folder=self.data,
                held_out=self._dev(texts)[1],
                own_test=True,
                teachers=open_teacher,
                seconds=seconds,
            )
        except Interrupted as stop:
            say(f"\n{stop}. The state is saved: run the same command again to go on.", self.console)
            raise stop.cause from None
        release_freed_memory()

    def compare_trained(
        self, texts: Folder, held_out: HeldOut, encoded: Mapping[str, Encoded]
    ) -> tuple[HeldOut, dict[str, Encoded]]:
        """Encode held-out text with what training has left; less of it where time has become short."""
        systems = trained_systems(self.recipe, self.out / "run", self.device)
        if "sizes after" not in self.plan:
            measured = measure_again(systems[TRAINED](), texts, self.measured, self.seed)
            left = self.left - reserve(self.seconds)
            sizes = shortened(Sizes(**self.plan["sizes"]), self.recipe, measured, left, len(systems))
            self._decide(**{"measured after": asdict(measured), "sizes after": asdict(sizes)})
        sizes = Sizes(**self.plan["sizes after"])
        held_out = held_out.cut(sizes)
        after, _ = self._encode(systems, held_out, sizes)
        together = {name: one.cut(sizes) for name, one in encoded.items()} | after
        return held_out, with_across(together) if self.teacher is not None else together

    def _encoded_by_teacher(self, held_out: HeldOut, sizes: Sizes) -> Encoded:
        """Return what the teacher makes of held-out text, kept or made now."""
        assert self.teacher is not None
        name = key_of(self.data, self.teacher, own_instruction(self.teacher), asdict(sizes))
        file = self.out / "vectors" / f"{name}.npz"
        if not file.exists():
            texts = len(held_out.pairs) + len(held_out.documents) + 2 * len(held_out.halves)
            teacher = open_teacher(Teacher(model=self.teacher), self.device)
            with progress_bar(self.console) as bar:
                encode_by_teacher(
                    teacher,
                    held_out,
                    own_instruction(self.teacher),
                    advancing(bar, "encoding: the teacher", texts),
                ).write(file)
            release_freed_memory()
        return Encoded.read(file)

    def _encode(
        self, systems: Mapping[str, Build], held_out: HeldOut, sizes: Sizes
    ) -> tuple[dict[str, Encoded], float | None]:
        """Return what systems make of held-out text, kept or made now, and tokens a second if made now."""
        encoded, ran, started = {}, 0, time.monotonic()
        texts = len(held_out.pairs) + len(held_out.documents) + 2 * len(held_out.halves)
        for name, build in systems.items():
            file = self.out / "vectors" / f"{key_of(self.data, self.plan['recipe'], name, asdict(sizes))}.npz"
            if not file.exists():
                with progress_bar(self.console) as bar:
                    encode_held_out(
                        build(),
                        held_out,
                        self.recipe,
                        most_chunks=sizes.chunks,
                        seed=self.seed,
                        progress=advancing(bar, f"encoding: {name}", texts),
                    ).write(file)
                ran += 1
                release_freed_memory()
            encoded[name] = Encoded.read(file)
        tokens = ran * tokens_of_system(self.recipe, sizes, self.measured)
        return encoded, tokens / (time.monotonic() - started) if ran else None

    # --- what is left to the user ------------------------------------------------------------------------

    def index(self, texts: Folder, held_out: HeldOut, encoded: Mapping[str, Encoded]) -> None:
        """Keep the better model, and index the folder's passages with it."""
        most = self.plan["sizes after"]["indexed"]
        if "kept" not in self.plan:
            self._decide(kept=asdict(better_of(held_out, encoded, self.seed)))
        model, chosen = keep_model(self.out, self.kept.system, self.recipe), encoded[self.kept.system]
        made_of = key_of(self.data, self.plan["recipe"], self.plan["sizes after"], self.kept.system)
        searched = best_mode(held_out, chosen, seed=self.seed)
        index_folder(
            self.out, model, texts, held_out, chosen, most, searched, made_of, self.device, self.console
        )

    def report(self, texts: Folder, held_out: HeldOut, encoded: Mapping[str, Encoded]) -> list[str]:
        """Write report.html, then report.json, which says that the run is finished; return why it overran."""
        recipe, overrun = self.recipe, self._overrun()
        with self.console.status("comparing and drawing the report"):
            figures = figures_of(held_out, encoded, after_mntp=system_after_mntp(recipe), seed=self.seed)
            taken = read_object(self.out / "run" / "model" / "recipe.json")["stages"]
            details = {
                **self.plan["asked"],
                "recipe": recipe.name,
                "base": recipe.model.base,
                "steps": {stage["name"]: stage["steps"] for stage in taken},
                "compared and indexed": self.plan["sizes after"],
                "measured": self.plan["measured"],
                "seconds": self.phases.seconds,
                **facts(device=pick_device(self.device)),
            }
            page = build_report(
                figures,
                held_out,
                encoded,
                texts,
                self.out / "run" / "log.jsonl",
                title=f"embedforge {self.plan['asked']['verb']}: {self.folder.name}",
                kept=self.kept,
                notices=overrun,
                details=details,
                seed=self.seed,
            )
            write_report(self.out / "report.html", page)
        found = {
            "systems": list(encoded),
            AS_IT_CAME: how_it_came(self.recipe),
            **figures.as_json(),
            "kept": {**asdict(self.kept), "verdict": self.kept.verdict},
            "read": texts.counts,
            "notices": [*texts.notices, *overrun],
            "question": held_out.question,
            "details": {**details, "minutes": round(self.minutes, 2)},
        }
        write_json(self.out / REPORT, found)
        return overrun

    def finish(self, overrun: Sequence[str]) -> None:
        """Remove what only an unfinished run needs, and say how long it took."""
        for name in ("vectors", FIRST):
            shutil.rmtree(self.out / name, ignore_errors=True)
        for line in overrun:
            note(line, self.console)
        say(f"finished in {self.minutes:.1f} minutes", self.console)

    def _overrun(self) -> list[str]:
        """Say where the time went, if there was not enough of it."""
        if 60 * self.minutes <= OVERRUN * self.seconds:
            return []
        spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.phases.seconds.items())
        speed = self.plan["measured after"]["tokens_per_second"]
        return [
            f"The run took {self.minutes:.1f} of {self.seconds / 60:g} minutes ({spent}), at "
            f"{self.measured.tokens_per_second:,.0f} tokens/s encoded before training, {speed:,.0f} after: "
            "a quieter machine, or more --minutes, trains and compares more."
        ]


def _require_pairs(folder: Path, texts: Folder) -> None:
    """Refuse a folder whose structure asks too few questions to train on them."""
    found = len(texts.train_pairs)
    if found >= PAIRS_NEEDED:
        return
    listed = ", ".join(f"{name} {count}" for name, count in texts.counts.items() if count)
    raise EmbedforgeError(
        f"{folder}: its headings, docstrings and sentences give {found} pairs of a question and its answer "
        f"for training, at least {PAIRS_NEEDED} are needed (better: 1,000). Counted: {listed}. Give a larger "
        "folder, or train on its text alone: embedforge adapt"
    )
