"""ONNX and OpenVINO of what a model may be: poolings, attention, a map after it, a merged adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from embedforge.export import forms
from embedforge.export.run import export_to
from embedforge.model.encoder import EmbeddingModel, build, save
from embedforge.text.contract import Contract
from models_for_tests import shape_of

pytestmark = pytest.mark.slow  # torch's exporter takes seconds for each


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("how deep is the river?\nbread and music\nÜbung " + "word " * 90, encoding="utf-8")
    return file


def made(base: Path, **settings: Any) -> EmbeddingModel:
    kind = settings.pop("pooling")
    contract = Contract(max_tokens=64, **settings)
    return build(base=str(base), contract=contract, pooling={"kind": kind, **shape_of(kind)})


def with_map(model: EmbeddingModel) -> EmbeddingModel:
    """Add a map to fewer dimensions, as a distilled or rotated model has it."""
    model.projection = torch.nn.Linear(32, 24)
    return model


def with_lora(model: EmbeddingModel) -> EmbeddingModel:
    """Train nothing, but merge an adapter that is not zero."""
    adapted = get_peft_model(
        model.decoder, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    model.decoder = adapted.merge_and_unload()
    return model


CASES = {
    "self_attention": lambda base: made(base, pooling="self_attention"),
    "cls": lambda base: made(base, pooling="cls", normalize=False),
    "last": lambda base: made(base, pooling="last", attention="causal", padding_side="left"),
    "weighted_mean": lambda base: made(base, pooling="weighted_mean", attention="causal"),
    "map": lambda base: with_map(made(base, pooling="latent")),
    "lora": lambda base: with_lora(made(base, pooling="mean", dtype="bfloat16")),
}
GRAPHS = [*(("onnx", case) for case in CASES), ("openvino", "weighted_mean"), ("openvino", "map")]


@pytest.mark.parametrize(("form", "case"), GRAPHS)
def test_the_graph_gives_the_vectors(
    case: str, form: str, tiny_base: Path, few: Path, tmp_path: Path
) -> None:
    for package in forms.NEEDS[form]:
        pytest.importorskip(package, reason=f"pip install 'embedforge[{form}]'")
    save(CASES[case](tiny_base), tmp_path / "model")
    export = export_to(str(tmp_path / "model"), tmp_path / "out", form, texts=few)
    assert export.rows[-1].tokens_equal == export.texts
    assert export.rows[-1].cosine_min > 0.99999


@pytest.mark.parametrize("case", ["last", "lora"])
def test_int8(case: str, tiny_base: Path, few: Path, tmp_path: Path) -> None:
    for package in forms.NEEDS["onnx"]:
        pytest.importorskip(package, reason="pip install 'embedforge[onnx]'")
    save(CASES[case](tiny_base), tmp_path / "model")
    export = export_to(
        str(tmp_path / "model"), tmp_path / "out", "onnx", int8=True, texts=few, min_cosine=0.9
    )
    assert 0.9 < export.rows[-1].cosine_min < export.rows[-2].cosine_min
