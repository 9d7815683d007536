"""Kinds of objective, pooling and source are found by subclass, in the package and outside, without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embedforge.data.kinds import source_kinds
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import load, save
from embedforge.model.pooling import pooler_class
from embedforge.objectives.contrastive import info_nce
from embedforge.recipe import Stage, parse_recipe
from embedforge.recipe.model import Pooling
from embedforge.recipe.objectives import Contrastive, Mntp, Objective, PairObjective
from embedforge.train.contrastive import StepVectors, query_losses
from embedforge.train.stages import work_of
from models_for_tests import TEXTS, make
from stages_for_tests import begin, gradients, recipe_of, supervised
from training_for_tests import WORDS

STAGE = {"name": "one", "steps": 3, "mix": {"sources": [{"path": "a.jsonl"}]}}


def in_a_fresh_interpreter(program: str) -> str:
    """What a program prints, with nothing imported before it."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_are_validated_without_torch_and_without_numpy() -> None:
    program = """
import sys
from embedforge.recipe import load_recipe, shipped_recipes
from embedforge.recipe.schema import recipe_schema
for name in shipped_recipes():
    load_recipe(name)
recipe_schema()
print(sorted({"torch", "transformers", "sentence_transformers", "numpy", "rich"} & set(sys.modules)))
"""
    assert in_a_fresh_interpreter(program).strip() == "[]"


OWN_KINDS = """
import json, sys
from collections.abc import Iterable
from typing import Literal
from embedforge.data.example import Example
from embedforge.data.kinds import SourceKind
from embedforge.errors import EmbedforgeError
from embedforge.recipe import parse_recipe
from embedforge.recipe.model import Pooling
from embedforge.recipe.objectives import Objective, PairObjective
from embedforge.recipe.schema import recipe_schema

class Margin(PairObjective):
    kind: Literal["margin"] = "margin"
    margin: float = 0.1

class Repair(Objective):
    unit = "texts"
    ignores = ("negatives",)
    kind: Literal["repair"] = "repair"

class Tail(Pooling):
    kind: Literal["tail"] = "tail"
    k: int = 4

class Questions(SourceKind):
    name = "questions"
    def examples(self, records, source, seed, negatives):
        return (Example(record.text("q"), (record.text("a"),)) for record in records)

def recipe(objective, pooling=None, **stage):
    source = {"path": "a.jsonl", "kind": stage.pop("source", "examples")}
    stages = [{"name": "s", "steps": 1, "mix": {"sources": [source]}, "objective": objective, **stage}]
    return parse_recipe({"name": "r", "model": {"pooling": pooling or {}}, "stages": stages}, "r.yaml")

def refused(*arguments, **stage):
    try:
        recipe(*arguments, **stage)
    except EmbedforgeError as error:
        return str(error)

own = recipe({"kind": "margin", "temperature": 1}, {"kind": "tail", "k": 2}, source="questions")
assert parse_recipe(json.loads(own.model_dump_json()), "again") == own
assert own.contract.pooling == "tail"
assert recipe({"kind": "repair"}, source="texts").stages[0].objective.learns_from == "texts"
schema = json.dumps(recipe_schema())
print(json.dumps({
    "key": refused({"kind": "margin", "marign": 1}),
    "kind": refused({"kind": "margni"}),
    "ignored": refused({"kind": "repair"}, source="texts", negatives=2),
    "sources": refused({"kind": "repair"}),
    "pooling": refused({}, {"kind": "mean", "k": 2}),
    "schema": [word in schema for word in ("margin", "tail", "questions")],
    "torch": "torch" in sys.modules,
}))
"""


def test_kinds_of_ones_own_are_read_like_the_packages() -> None:
    found = json.loads(in_a_fresh_interpreter(OWN_KINDS))
    assert "objective.marign: unknown key. Did you mean 'margin'?" in found["key"]
    assert re.search(
        r"'margni' is none of contrastive, margin, .*mntp, simcse, merge, repair\. Did you mean 'margin'\?",
        found["kind"],
    )
    assert "negatives (2) has no effect on objective 'repair'" in found["ignored"]
    assert "objective 'repair' learns from texts alone" in found["sources"]
    assert "k (2) has no effect on kind 'mean', it is for tail" in found["pooling"]
    assert found["schema"] == [True] * 3
    assert not found["torch"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"model": {"pooling": {"kind": "tail"}}}, "model.pooling.kind: 'tail' is none of last, mean,"),
        (
            {"stages": [{**STAGE, "objective": {"kind": "margin"}}]},
            "stages.0.objective.kind: 'margin' is none",
        ),
        (
            {"stages": [{**STAGE, "mix": {"sources": [{"path": "a", "kind": "rows"}]}}]},
            "kind: 'rows' is none",
        ),
        ({"stages": [{**STAGE, "mix": {"sources": [{"path": "a", "kind": ["x"]}]}}]}, "sources.0.kind: "),
        ({"model": {"pooling": {"kind": ["x"]}}}, "model.pooling.kind: "),
        ({"model": {"pooling": "mean"}}, "model.pooling: this is a section, as in {kind: mean}, not 'mean'"),
    ],
)
def test_a_kind_that_nobody_has_imported_is_refused(change: dict, place: str) -> None:
    with pytest.raises(EmbedforgeError) as caught:
        parse_recipe({"name": "r", "stages": [STAGE], **change}, "r.yaml")
    assert place in str(caught.value)
    assert ("once its module is imported" in str(caught.value)) == (
        "is none" in place or "pooling.kind: " in place
    )


def test_the_name_of_a_module_is_no_kind(tmp_path: Path) -> None:
    """A recipe is data: nothing in it is imported."""
    (tmp_path / "evil.py").write_text("raise SystemExit('the code ran')")
    for kind in ("evil", "evil.Objective", "evil:Objective", str(tmp_path / "evil.py")):
        with pytest.raises(EmbedforgeError, match="is none of contrastive"):
            parse_recipe({"name": "r", "stages": [{**STAGE, "objective": {"kind": kind}}]}, "r.yaml")


# --- both halves of a kind -------------------------------------------------------------------------


def test_a_subclass_without_a_kind_of_its_own_takes_nobodys_place() -> None:
    class Softer(Contrastive):
        temperature: float = 0.5

    assert Objective.kinds()["contrastive"] is Contrastive
    stage = {**STAGE, "objective": Softer()}
    assert parse_recipe({"name": "r", "stages": [stage]}, "r.yaml").stages[0].objective == Softer()


def test_what_an_objective_ignores_are_keys_of_a_stage() -> None:
    for objective in Objective.kinds().values():
        assert set(objective.ignores) <= set(Stage.model_fields), objective


@pytest.mark.parametrize("kind", Pooling.kinds())
def test_a_pooling_in_a_recipe_has_the_settings_of_its_module(kind: str) -> None:
    section = Pooling.kinds()[kind]
    assert [name for name in section.model_fields if name != "kind"] == pooler_class(kind).settings()


def test_every_kind_of_source_knows_settings_that_there_are() -> None:
    for kind in source_kinds().values():
        assert set(kind.settings) <= {"symmetric", "label_documents", "threshold"}, kind


def test_an_objective_without_a_loss_or_without_work_says_what_to_register() -> None:
    with pytest.raises(
        EmbedforgeError, match=r"objective 'mntp' has no loss.*for Mntp.*query_losses\.register"
    ):
        query_losses(Mntp(), None)
    own = type("Own", (Objective,), {}).model_construct(kind="own")
    stage = parse_recipe({"name": "r", "stages": [STAGE]}, "r.yaml").stages[0]
    with pytest.raises(EmbedforgeError, match=r"stage 'one'.*'own'.*for Own.*work_of\.register"):
        work_of(own, None, None, stage, None)


class Spread(PairObjective):
    """Has no kind of its own, so that no other test finds it among the kinds."""


@query_losses.register
def _(objective: Spread, step: StepVectors) -> torch.Tensor:
    """InfoNCE, and a term of the whole step: it pulls every vector away from all others."""
    own = info_nce(step.queries, step.documents, step.positive, step.candidates, objective.temperature)
    everything = torch.cat([step.queries, step.documents])
    return own + (everything @ everything.T).square().mean()


def test_a_loss_of_ones_own_has_the_gradient_of_the_whole_step(tiny_base: Path, tmp_path: Path) -> None:
    """Also the part that couples all vectors, for any size of micro-batch."""
    rows = [
        {"query": f"q {word}", "positives": [f"{word} a"], "negatives": ["b " * 9]} for word in WORDS[:12]
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = recipe_of(tiny_base, supervised(tmp_path / "a.jsonl"))
    objective = Spread.model_construct(kind="spread", temperature=0.1)
    found = []
    for tokens in (16_384, 16):
        changes = {"objective": objective, "tokens_per_micro_batch": tokens}
        stage = recipe.stages[0].model_copy(update=changes)
        _, work = begin(recipe.model_copy(update={"stages": (stage,)}))
        found.append(gradients(work))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)
    plain = gradients(begin(recipe)[1])
    assert any(not torch.allclose(plain[name], gradient) for name, gradient in found[0].items())


# --- what earlier versions wrote -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["last", "mean", "weighted_mean", "cls", "latent", "self_attention"])
def test_a_recipe_that_has_the_keys_of_all_poolings_is_read(kind: str) -> None:
    """Earlier versions wrote every key into recipe.json, whatever the kind."""
    written = {"kind": kind, "latents": 512, "heads": 8, "head_dim": None, "feed_forward_multiple": 4}
    recipe = parse_recipe({"name": "r", "model": {"pooling": written}, "stages": [STAGE]}, "recipe.json")
    assert recipe.model.pooling == Pooling.kinds()[kind]()


def test_a_saved_pooler_with_the_settings_of_latent_attention_is_loaded(
    tiny_base: Path, tmp_path: Path
) -> None:
    save(make(tiny_base, "self_attention"), tmp_path / "model")
    expected = load(str(tmp_path / "model"), "cpu").encode(TEXTS)
    config = tmp_path / "model" / "1_Pool" / "config.json"
    values = json.loads(config.read_text())
    assert values["options"] == {"heads": 2, "head_dim": 16}
    values["options"] |= {"latents": 512, "feed_forward_multiple": 4}
    config.write_text(json.dumps(values))
    assert (load(str(tmp_path / "model"), "cpu").encode(TEXTS) == expected).all()
