"""The model card: base, licence, language, scores of the last evaluation, the instruction elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from embedforge.evaluate.run import model_fingerprint
from embedforge.files import read_json
from embedforge.model.card import note_evaluation
from embedforge.model.encoder import save
from models_for_tests import make

PREFIX = '"Instruct: Given a query, retrieve passages that answer the query\\nQuery: "'
SCORES = {"rivers": {"type": "Retrieval", "metric": "ndcg_at_10", "score": 0.51234, "units": [1]}}


def test_base_licence_and_language_come_from_the_base(tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "README.md").write_text(
        "---\nlicense: mit\nlanguage: [de, fr]\nbase_model: some/decoder\n---\n# Base\n"
    )
    cases = {
        "embedforge:base": ("apache-2.0", "en", None),
        str(base): ("mit", ["de", "fr"], "some/decoder"),
        str(tiny_base): ("unknown", None, None),
        "someone/not-here": ("unknown", None, "someone/not-here"),
    }
    for number, (name, expected) in enumerate(cases.items()):
        out = tmp_path / str(number)
        save(make(tiny_base), out, {"name": "tiny", "model": {"base": name}})
        card = ModelCard.load(out / "README.md")
        assert (card.data.license, card.data.language, card.data.base_model) == expected
        assert ("licence: unknown, the base does not say" in card.text) == (expected[0] == "unknown")


def test_each_library_is_told_the_instruction(tiny_base: Path, tmp_path: Path) -> None:
    save(make(tiny_base), tmp_path / "stock")
    text = (tmp_path / "stock" / "README.md").read_text()
    assert f"instruction = {PREFIX}" in text
    for argument in (
        'encode(["a query"], prompt_name="query")',
        'query_encode_kwargs={"prompt_name": "query"}',
        "query_instruction=instruction",
        'encode_kwargs={"prompt_name": "query"}',
        "query_embeddings=model.encode_query(",
        "table.search(model.encode_query(",
    ):
        assert argument in text
    assert "trust_remote_code" not in text
    save(make(tiny_base, "latent"), tmp_path / "own")
    text = (tmp_path / "own" / "README.md").read_text()
    assert text.count("trust_remote_code") == 4
    assert 'embedforge.load("path' in text
    save(make(tiny_base, default_instruction="", dtype="bfloat16"), tmp_path / "bare")
    text = (tmp_path / "bare" / "README.md").read_text()
    assert "In other libraries" not in text
    assert 'model_kwargs={"dtype": "float32"}' in text


def test_the_last_evaluation_is_in_the_card(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(make(tiny_base), folder)
    before = model_fingerprint(str(folder))
    note_evaluation(folder, {**SCORES, "old": SCORES["rivers"]}, "test")
    note_evaluation(folder, SCORES, "test")
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("rivers", "ndcg_at_10", 0.51234)
    assert card.text.count("| rivers | Retrieval | ndcg_at_10 | 0.5123 |") == 1
    assert "old" not in card.text.split("Last evaluation")[1]
    assert "In other libraries" in card.text
    assert read_json(folder / "evaluation.json")["tasks"]["rivers"]["score"] == pytest.approx(0.51234)
    assert model_fingerprint(str(folder)) == before
