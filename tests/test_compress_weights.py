"""Pruned and int8 weights of finished models, and recovery with the zeros kept."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn

from conftest import Run
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import EmbeddingModel, build, embedding_model, load, save
from embedforge.model.int8 import (
    Int8Linear,
    is_int8,
    maps_of,
    multiplies_bytes,
    multiply_bytes,
    to_int8,
)
from embedforge.model.probe import decoder_layers
from embedforge.model.shards import INT8_WEIGHTS
from embedforge.model.sparsity import Sparsity, kept_mask, linear_layers, sparsify
from embedforge.recipe import parse_recipe
from embedforge.text.contract import Contract
from embedforge.train.merge import merge
from embedforge.train.stages import prepare_model
from models_for_tests import TEXTS, embed, needs_bytes
from stages_for_tests import write_texts


def zeros(model: EmbeddingModel) -> list[torch.Tensor]:
    return [linear.weight == 0 for maps in linear_layers(model) for linear in maps.values()]


@pytest.mark.parametrize("text", ["0", "1.0", "4:2", "2:2", "0:4", "half", "-0.5", "1"])
def test_a_sparsity_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(EmbedforgeError, match="give the share of weights"):
        Sparsity.parse(text)


def test_masks_keep_the_highest_scores() -> None:
    scores = torch.rand(6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = kept_mask(scores, Sparsity.parse("0.25"), by_row=False)
    assert int(whole.sum()) == 72
    assert scores[whole].min() > scores[~whole].max()
    rows = kept_mask(scores, Sparsity.parse("0.5"), by_row=True)
    assert rows.sum(dim=1).tolist() == [8] * 6
    for mask, row in zip(rows, scores, strict=True):
        assert row[mask].min() > row[~mask].max()
    for n, m in ((2, 4), (4, 8)):
        groups = kept_mask(scores, Sparsity.parse(f"{n}:{m}"), by_row=False).reshape(-1, m)
        for mask, group in zip(groups, scores.reshape(-1, m), strict=True):
            assert set(mask.nonzero()[:, 0].tolist()) == set(group.argsort()[-n:].tolist())
    with pytest.raises(EmbedforgeError, match="no multiple of 3"):
        kept_mask(scores, Sparsity.parse("1:3"), by_row=False)


def test_wanda_weighs_by_the_inputs_of_layers_that_are_pruned_already(tiny_model: EmbeddingModel) -> None:
    """The definition, in float64: inputs of real tokens alone, the first layer pruned before the second."""
    model = tiny_model.eval().double()
    before = [{n: m.weight.clone() for n, m in maps.items()} for maps in linear_layers(model)]
    share = sparsify(model, "wanda", Sparsity.parse("2:4"), TEXTS, texts_per_batch=3)
    assert share == 0.5
    for number, layer in enumerate(decoder_layers(model.decoder)):
        seen: list[torch.Tensor] = []
        hook = layer.mlp.gate_proj.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].detach())
        )
        own = [m.weight.data.clone() for m in linear_layers(model)[number].values()]
        for (name, linear), _ in zip(linear_layers(model)[number].items(), own, strict=True):
            linear.weight.data = before[number][name].clone()  # as it was when its inputs were seen
        for text in TEXTS:  # one by one: no padding
            with torch.no_grad():
                model(**model.renderer.pad(model.renderer.render([text])))
        hook.remove()
        for (_, linear), weight in zip(linear_layers(model)[number].items(), own, strict=True):
            linear.weight.data = weight
        length = torch.cat([states.reshape(-1, states.shape[-1]) for states in seen]).square().sum(0).sqrt()
        scores = before[number]["mlp.gate_proj"].abs() * length
        expected = kept_mask(scores, Sparsity.parse("2:4"), by_row=True)
        assert torch.equal(layer.mlp.gate_proj.weight != 0, expected)


def test_int8_rounds_rows_and_nothing_else() -> None:
    linear = nn.Linear(32, 8)
    linear.weight.data[:, ::2] = 0
    rounded = Int8Linear.of(linear)
    exact = linear.weight.double()
    step = exact.abs().amax(dim=1, keepdim=True) / 127
    stored = rounded.weight.double() * rounded.scale.double()[:, None]
    assert ((stored - exact).abs() <= step * 0.5001).all()
    assert not rounded.weight[:, ::2].any()
    scales = rounded.scale.clone()
    for texts in (3, 9):  # of few states products are scaled, of many the weights
        states = torch.randn(texts, 5, 32)
        assert (rounded.exact_weight(states) is None) == (texts == 3)
        expected = states.double() @ stored.T + linear.bias.double()
        assert torch.allclose(rounded(states).double(), expected, atol=1e-5)
        half = copy.deepcopy(rounded).bfloat16()
        assert torch.equal(half.scale, scales)
        assert torch.allclose(half(states.bfloat16()).double(), expected, atol=0.05)


def test_an_int8_model_is_saved_loaded_and_found_by_no_loader_that_would_get_it_wrong(
    tiny_model: EmbeddingModel, tiny_base: Path, tmp_path: Path
) -> None:
    before = embed(tiny_model.eval(), TEXTS)
    assert to_int8(tiny_model.decoder) == 14
    vectors = embed(tiny_model, TEXTS)
    assert (vectors * before).sum(1).min() > 0.99
    save(tiny_model, tmp_path / "int8")
    assert Contract.load(tmp_path / "int8").dtype == "int8"
    again = embedding_model(load(str(tmp_path / "int8"), device="cpu", dtype="float32"))
    assert np.array_equal(embed(again.eval(), TEXTS), vectors)
    assert "int8 weights" in (tmp_path / "int8" / "README.md").read_text()
    with pytest.raises(Exception, match=r"int8|trust_remote_code|model\.safetensors"):
        SentenceTransformer(str(tmp_path / "int8"), device="cpu")
    with pytest.raises(EmbedforgeError, match="int8 already"):
        to_int8(again.decoder)
    stage = {"name": "s", "steps": 1, "mix": {"sources": [{"path": "x.jsonl"}]}}
    recipe = {"name": "r", "model": {"base": str(tmp_path / "int8")}, "contract": {"max_tokens": 64}}
    with pytest.raises(EmbedforgeError, match="int8, which cannot be trained"):
        prepare_model(parse_recipe({**recipe, "stages": [stage]}, "r"), "cpu")
    named = {**recipe, "model": {}, "contract": {"max_tokens": 64, "dtype": "int8"}, "stages": [stage]}
    with pytest.raises(EmbedforgeError, match="compress weights --int8"):
        parse_recipe(named, "r")
    (tmp_path / "int8" / "model.int8.safetensors").write_bytes(b"short")
    with pytest.raises(EmbedforgeError, match=r"int8\.safetensors"):
        load(str(tmp_path / "int8"))


def test_what_is_beside_int8_weights_is_saved_in_the_dtype_that_the_contract_wants(
    tiny_model: EmbeddingModel, tmp_path: Path
) -> None:
    tiny_model.contract = tiny_model.contract.model_copy(update={"dtype": "bfloat16"})
    to_int8(tiny_model.decoder)
    save(tiny_model, tmp_path / "int8")
    kinds = {name: tensor.dtype for name, tensor in load_file(tmp_path / "int8" / INT8_WEIGHTS).items()}
    assert kinds["embed_tokens.weight"] == torch.bfloat16
    assert kinds["layers.0.mlp.up_proj.scale"] == torch.float32
    assert kinds["layers.0.mlp.up_proj.weight"] == torch.int8
    again = embedding_model(load(str(tmp_path / "int8"), device="cpu", dtype="float32"))
    save(again, tmp_path / "again")
    assert (tmp_path / "again" / INT8_WEIGHTS).read_bytes() == (tmp_path / "int8" / INT8_WEIGHTS).read_bytes()


def test_int8_models_are_not_merged_built_or_written_as_what_they_are_not(
    tiny_model: EmbeddingModel, tmp_path: Path
) -> None:
    to_int8(tiny_model.decoder)
    for name in ("one", "two"):
        save(tiny_model, tmp_path / name)
    with pytest.raises(EmbedforgeError, match="between which there is no mean"):
        merge([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path / "merged")
    contract = Contract.load(tmp_path / "one")
    assert is_int8(build(base=str(tmp_path / "one"), contract=contract).decoder)
    assert build(base=str(tmp_path / "one"), contract=Contract(max_tokens=64)).contract.dtype == "float32"
    with pytest.raises(EmbedforgeError, match="compress weights --int8"):
        build(base="embedforge:base", contract=contract)


@needs_bytes
def test_products_of_bytes_do_not_overflow() -> None:
    """Every byte of a row at its largest, of either sign, times weights of 127: exact in whole numbers."""
    linear = Int8Linear(8, 512, None)
    linear.weight = torch.full((8, 512), 127, dtype=torch.int8)
    linear.weight[1::2] = -127
    multiply_bytes(linear)
    given = torch.ones(6, 512)
    given[3:] = -1
    with torch.no_grad():
        found = linear(given)
    assert torch.allclose(found, given @ linear.weight.float().T, rtol=1e-6)


@needs_bytes
def test_products_of_bytes_round_each_token_by_itself() -> None:
    linear = Int8Linear.of(nn.Linear(64, 16))
    exact = (
        torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 7)[:, None]
    )
    exact[1, 2] = 0
    with torch.no_grad():
        expected = linear(exact)
        multiply_bytes(linear)
        found = linear(exact)
        assert torch.equal(linear(exact[2]), found[2])
        assert torch.equal(maps_of(exact, [linear, linear])[1], found)
    step = exact.abs().amax(dim=2, keepdim=True) / 63 / 2
    most = step * linear.weight.float().abs().sum(dim=1) * linear.scale
    assert ((found - expected).abs() <= most + 1e-5).all()
    assert not torch.equal(found, expected)
    exact.requires_grad_()
    assert torch.equal(linear(exact), expected)  # with a gradient nothing is rounded
    exact.detach()[0, 0, 0] = torch.nan
    with torch.no_grad():
        assert linear(exact)[0, 0].isnan().all()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(exact[2]).dtype == torch.bfloat16
        assert linear(exact[:, :0]).shape == (3, 0, 16)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(linear)(exact[2]), found[2])
        other = Int8Linear.of(nn.Linear(64, 16))
        linear.load_state_dict(other.state_dict())
        other.by_bytes = True
        assert torch.allclose(linear(exact), other(exact), equal_nan=True)
        assert not linear.takes_bytes(exact.double())


@needs_bytes
def test_a_loaded_model_multiplies_bytes_where_that_is_fast_and_the_goldens_allow(
    tiny_model: EmbeddingModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    to_int8(tiny_model.decoder)
    save(tiny_model, tmp_path / "int8")
    folder = str(tmp_path / "int8")

    def loaded(dtype: str | None = None) -> EmbeddingModel:
        return embedding_model(load(folder, device="cpu", dtype=dtype))

    monkeypatch.setattr("embedforge.model.int8.fast_bfloat16", lambda _: True)
    assert not multiplies_bytes(loaded().decoder)
    monkeypatch.setattr("embedforge.model.int8.fast_bfloat16", lambda _: False)
    exact, by_bytes = loaded("float32"), loaded()
    assert not multiplies_bytes(exact.decoder)
    assert multiplies_bytes(by_bytes.decoder)
    cosines = (embed(by_bytes, TEXTS) * embed(exact, TEXTS)).sum(1)
    assert 0.995 < cosines.min() < 1 - 1e-7
    st = load(folder, device="cpu")  # whose `encode` moves the model to where it is
    assert np.allclose(st.encode(TEXTS), embed(by_bytes, TEXTS), atol=1e-5)
    monkeypatch.setattr("embedforge.model.int8.LEAST_COSINE", 1.1)
    assert not multiplies_bytes(loaded().decoder)
    assert "would bring a golden text's vector to" in caplog.text
    monkeypatch.setattr("embedforge.model.int8.memory_at_hand", lambda: 1000)
    assert not multiplies_bytes(loaded().decoder)
    assert "memory is short" in caplog.text


@pytest.mark.parametrize("how", ["magnitude", "wanda"])
def test_a_model_is_pruned_recovered_with_its_zeros_and_rounded(
    run: Run, model_folder: Path, tmp_path: Path, how: str
) -> None:
    texts = write_texts(tmp_path / "texts.txt", rows=60)
    out = tmp_path / "out"
    command = ["compress", "weights", model_folder, "--out", out, "--prune", how, "--sparsity", "2:4"]
    command += [
        "--texts",
        texts,
        "--recover",
        "30",
        "--batch",
        "16",
        "--learning-rate",
        "3e-3",
        "--device",
        "cpu",
    ]
    code, said, error = run(*command, "--int8")
    assert code == 0, error
    assert "50.0% of the linear layers' weights are zero" in said
    whole, pruned, recovered, result = (
        embedding_model(load(str(folder), device="cpu"))
        for folder in (model_folder, out / "pruned", out / "recovery" / "model", out / "model")
    )
    assert all(torch.equal(a, b) for a, b in zip(zeros(pruned), zeros(recovered), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(pruned.parameters(), recovered.parameters(), strict=True)
    )
    lines = texts.read_text().splitlines()
    target = embed(whole, lines)
    near = {
        name: (embed(m, lines) * target).sum(1).mean() for name, m in (("pruned", pruned), ("rec", recovered))
    }
    assert near["rec"] > near["pruned"] + 0.02, near
    assert (embed(result, lines) * embed(recovered, lines)).sum(1).mean() > 0.99
    stamp = (out / "model" / "contract.json").stat().st_mtime_ns
    assert run(*command, "--int8")[0] == 0  # goes on with what is there
    assert (out / "model" / "contract.json").stat().st_mtime_ns == stamp
    code, _, error = run(*command)
    assert code == 1
    assert "int8 was True, is False" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "ask for --prune magnitude"),
        (["--prune", "random"], "there is magnitude and wanda"),
        (["--prune", "wanda"], "name a file with --texts"),
        (["--int8", "--recover", "5"], "ask for --prune too"),
        (["--prune", "magnitude", "--sparsity", "2"], "give the share of weights"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    run: Run, model_folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, _, error = run("compress", "weights", model_folder, "--out", tmp_path / "out", *options)
    assert code == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_zeros_are_kept_only_where_that_can_be(model_folder: Path) -> None:
    stage = {"name": "s", "steps": 1, "mix": {"sources": [{"path": "x.jsonl"}]}}
    values = {
        "name": "r",
        "model": {"base": str(model_folder)},
        "contract": {"max_tokens": 48},
        "training": {"keep_zeros": True},
        "stages": [stage],
    }
    with pytest.raises(EmbedforgeError, match=r"no weight .* is zero"):
        prepare_model(parse_recipe(values, "r"), "cpu")
    with pytest.raises(EmbedforgeError, match=r"keep_zeros cannot be had with model\.adapter"):
        parse_recipe({**values, "model": {"base": str(model_folder), "adapter": {}}}, "r")
