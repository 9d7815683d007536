"""Finished models made into one: means, arcs, and a choice by a development set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from conftest import Run, spread_weights, write_base
from embedforge.data.convert import read_source
from embedforge.data.marks import CheckedTask, Mark, read_mark, write_mark
from embedforge.errors import EmbedforgeError
from embedforge.files import file_hash
from embedforge.model.encoder import embedding_model, load, save
from embedforge.model.prune import prune
from embedforge.recipe import source_of
from embedforge.text.contract import Contract
from embedforge.train.decontamination import mark_of_training
from embedforge.train.merge import merge, slerp
from embedforge.train.metrics import held_out_retrieval
from models_for_tests import make
from training_for_tests import tiny_recipe, weights, write_pairs


def write_model(
    base: Path, folder: Path, seed: int, kind: str = "latent", noise: float = 0.05, **contract
) -> str:
    """A model that some training has moved away from its base."""
    model = make(base, kind, **contract)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    save(model, folder)
    return str(folder)


@pytest.fixture(scope="module")
def three(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("three")
    return [write_model(tiny_base, folder / name, seed) for seed, name in enumerate("abc")]


def test_the_mean_is_the_mean_of_the_weights_and_loads(three: list[str], tmp_path: Path) -> None:
    """Pooler included; the goldens are those of the new weights."""
    parts = merge(three[:2], tmp_path / "soup")
    assert [part.weight for part in parts] == [0.5, 0.5]
    one, other, merged = (weights(Path(folder)) for folder in (*three[:2], tmp_path / "soup"))
    one, other, merged = (by_file(each) for each in (one, other, merged))
    assert merged.keys() == one.keys()
    assert any("latents" in name for name in merged)
    for name, tensor in merged.items():
        assert torch.equal(tensor, (one[name] + other[name]) / 2), name
    assert Contract.load(tmp_path / "soup").goldens != Contract.load(Path(three[0])).goldens
    assert load(tmp_path / "soup", device="cpu").encode(["river"]).shape == (1, 32)
    assert json.loads((tmp_path / "soup" / "merge.json").read_text())["how"] == "mean"


def by_file(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The decoder's and the pooler's, without the name of the model's folder."""
    return {
        name.split("/", 1)[1] if not name.startswith("1_") else name: value for name, value in tensors.items()
    }


def test_weights_are_shares(three: list[str], tmp_path: Path) -> None:
    parts = merge(three, tmp_path / "soup", weights=[2, 1, 1])
    assert [part.weight for part in parts] == [0.5, 0.25, 0.25]
    a, b, c, merged = (load_file(Path(f) / "model.safetensors") for f in (*three, tmp_path / "soup"))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, a[name] / 2 + b[name] / 4 + c[name] / 4)


def test_bfloat16_models_stay_bfloat16(tiny_base: Path, tmp_path: Path) -> None:
    models = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        model = make(tiny_base, "mean", dtype="bfloat16")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += (0.05 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
        save(model, folder)
        models.append(str(folder))
    merge(models, tmp_path / "soup")
    a, b, merged = (load_file(Path(f) / "model.safetensors") for f in (*models, tmp_path / "soup"))
    for name, tensor in merged.items():
        assert torch.equal(tensor, ((a[name].float() + b[name].float()) / 2).bfloat16())


def test_slerp_of_equal_weights_is_those_weights(three: list[str], tiny_base: Path, tmp_path: Path) -> None:
    twin = write_model(tiny_base, tmp_path / "twin", 0)
    merge([three[0], twin], tmp_path / "soup", how="slerp")
    one, merged = (
        load_file(Path(three[0]) / "model.safetensors"),
        load_file(tmp_path / "soup" / "model.safetensors"),
    )
    assert all(torch.equal(tensor, one[name]) for name, tensor in merged.items())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_slerp_stays_on_the_arc(seed: int, share: float) -> None:
    """Of tensors of one length: that length, and angles in the proportion of the shares."""
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0) for _ in range(2))
    found = slerp(one, other, share)
    assert abs(float(found.norm()) - 1) < 1e-5
    whole, part = torch.dot(one, other).clamp(-1, 1).acos(), torch.dot(one, found).clamp(-1, 1).acos()
    assert abs(float(part) - share * float(whole)) < 2e-3
    torch.testing.assert_close(slerp(one, other, 0.0), one)
    torch.testing.assert_close(slerp(one, other, 1.0), other)


def test_slerp_of_nothing_and_of_opposites_is_finite() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert torch.equal(slerp(zero, zero, 0.5), zero)
    assert torch.equal(slerp(zero, one, 0.5), one / 2)
    assert slerp(one, -one, 0.3).isfinite().all()


# --- greedy ----------------------------------------------------------------------------------------------


def mrr(folder: str | Path, files: list[Path]) -> float:
    model = embedding_model(load(folder, device="cpu"))
    scores = []
    for file in files:
        source = source_of(str(file), instruction=model.contract.default_instruction)
        scores.append(held_out_retrieval(model, read_source(source, seed=0), bfloat16=False)["eval_mrr@10"])
    return sum(scores) / len(scores)


@pytest.mark.parametrize("how", ["mean", "slerp"])
def test_greedy_is_never_below_the_best_one(tiny_base: Path, tmp_path: Path, how: str) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for seed, file in enumerate(files):
        write_pairs(file, rows=20, seed=seed)
    noises = [0.02, 0.6, 0.05, 0.3]
    models = [
        write_model(tiny_base, tmp_path / str(seed), seed, "mean", noise) for seed, noise in enumerate(noises)
    ]
    parts = merge(models, tmp_path / "soup", how=how, dev=files, device="cpu")
    alone = {part.model: part.alone for part in parts}
    for model in models:
        assert alone[model] == pytest.approx(mrr(model, files))
    assert parts[0].alone == max(alone.values())
    assert sum(part.weight for part in parts) == pytest.approx(1)
    reached = parts[0].alone
    for part in parts[1:]:
        assert bool(part.weight) == (part.joined >= reached)
        reached = max(reached, part.joined)
    assert mrr(tmp_path / "soup", files) == pytest.approx(reached)
    assert reached >= max(alone.values())


def test_a_model_that_spoils_is_left_out_and_the_best_stays_as_it_is(tiny_base: Path, tmp_path: Path) -> None:
    """Queries that are their own answers, and a model that cannot tell any texts apart."""
    rows = [{"query": f"stone {number}", "positives": [f"stone {number}"]} for number in range(40)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    good = write_model(tiny_base, tmp_path / "good", 0, "mean", noise=0.0, default_instruction="")
    bad = tmp_path / "bad"
    model = make(tiny_base, "mean", default_instruction="")
    with torch.no_grad():
        model.decoder.get_input_embeddings().weight.fill_(1e6)
    save(model, bad)
    parts = merge([str(bad), good], tmp_path / "soup", dev=[tmp_path / "dev.jsonl"], device="cpu")
    assert [(part.model, part.weight) for part in parts] == [(good, 1.0), (str(bad), 0.0)]
    assert parts[0].alone == 1
    assert parts[1].alone < 0.1
    assert parts[1].why.startswith("left out, -")
    one, merged = (
        load_file(Path(good) / "model.safetensors"),
        load_file(tmp_path / "soup" / "model.safetensors"),
    )
    assert all(torch.equal(tensor, one[name]) for name, tensor in merged.items())


# --- refusals --------------------------------------------------------------------------------------------


def test_models_that_do_not_fit_are_refused_by_name(
    three: list[str], tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(EmbedforgeError, match="two or more different models"):
        merge(three[:1], tmp_path / "soup")
    with pytest.raises(EmbedforgeError, match="two or more different models"):
        merge([three[0], three[0]], tmp_path / "soup")
    with pytest.raises(EmbedforgeError, match="mean or slerp"):
        merge(three, tmp_path / "soup", how="median")  # type: ignore[arg-type]
    with pytest.raises(EmbedforgeError, match="3 models are merged by one weight each"):
        merge(three, tmp_path / "soup", weights=[1, 1])
    with pytest.raises(EmbedforgeError, match="give one of the two"):
        merge(three, tmp_path / "soup", weights=[1, 1, 1], dev=["dev.jsonl"])
    with pytest.raises(EmbedforgeError, match="would replace"):
        merge(three, three[1])
    with pytest.raises(EmbedforgeError, match=r"no contract\.json"):
        merge([three[0], str(tiny_base)], tmp_path / "soup")
    other = write_model(tiny_base, tmp_path / "other", 5, add_eos=False)
    with pytest.raises(
        EmbedforgeError, match=r"other cannot be merged with .*contract: add_eos was True, is False"
    ):
        merge([three[0], other], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_other_shapes_are_refused(three: list[str], tmp_path: Path, tiny_tokenizer) -> None:
    base = write_base(tmp_path / "base", tiny_tokenizer, tied=True)
    prune(str(base), tmp_path / "small", layers=1)
    shallow = write_model(tmp_path / "small", tmp_path / "shallow", 0)
    with pytest.raises(EmbedforgeError, match=r"shallow cannot be merged.*config\.json differ"):
        merge([three[0], shallow], tmp_path / "soup")


def test_strangers_are_pointed_out(three: list[str], tiny_tokenizer, tmp_path: Path, caplog) -> None:
    """The same shape and contract, of another base."""
    write_base(tmp_path / "base", tiny_tokenizer, tied=False)
    model = make(tmp_path / "base", "latent")
    spread_weights(model, seed=9)
    save(model, tmp_path / "stranger")
    merge([three[0], str(tmp_path / "stranger")], tmp_path / "soup")
    assert "do not come from one base" in caplog.text
    caplog.clear()
    merge(three[:2], tmp_path / "soup")
    assert "one base" not in caplog.text


def test_a_mark_is_left_where_all_have_it(tiny_base: Path, tmp_path: Path) -> None:
    models = [write_model(tiny_base, tmp_path / str(seed), seed, "mean") for seed in (0, 1)]
    tasks = {"one": CheckedTask(fingerprint="1"), "two": CheckedTask(fingerprint="2")}
    write_mark(Path(models[0]), Mark(tasks=tasks))
    merge(models, tmp_path / "soup")
    assert read_mark(tmp_path / "soup") is None
    write_pairs(tmp_path / "pairs.jsonl")
    write_mark(tmp_path, Mark(tasks=tasks, files={"pairs.jsonl": file_hash(tmp_path / "pairs.jsonl")}))
    for base, known in (
        (tiny_base, ["one", "two"]),
        (tmp_path / "soup", []),
    ):  # what it saw, its successor saw
        mark = mark_of_training(tiny_recipe(base, tmp_path / "pairs.jsonl"))
        assert mark is not None
        assert list(mark.tasks) == known
    write_mark(Path(models[1]), Mark(tasks={"two": tasks["two"]}))
    merge(models, tmp_path / "soup")
    mark = read_mark(tmp_path / "soup")
    assert mark is not None
    assert list(mark.tasks) == ["two"]


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_prints_what_was_kept_and_why(run: Run, three: list[str], tmp_path: Path) -> None:
    write_pairs(tmp_path / "dev.jsonl", rows=20)
    code, said, _ = run(
        "merge", *three, "--out", tmp_path / "soup", "--dev", tmp_path / "dev.jsonl", "--device", "cpu"
    )
    assert code == 0
    assert "MRR@10 alone" in said
    assert "the best one alone" in said
    assert f"The model is in {tmp_path / 'soup'}" in said
    code, said, _ = run("merge", *three, "--out", tmp_path / "soup", "--how", "slerp", "--weights", "2,1,1")
    assert code == 0
    assert "0.500" in said


def test_the_command_says_what_is_wrong(run: Run, three: list[str], tmp_path: Path) -> None:
    code, _, said = run("merge", *three, "--out", tmp_path / "soup", "--weights", "a,b")
    assert code == 1
    assert "--weights takes numbers" in said
    code, _, said = run("merge", *three, "--out", tmp_path / "soup", "--dev", tmp_path / "none.jsonl")
    assert code == 1
    assert "no such file" in said
