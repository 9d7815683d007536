"""The embedder in the package: what embeds where no model is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import embedforge
from embedforge.encode import encode
from embedforge.model.encoder import embedding_model
from embedforge.model.folder import DEFAULT_MODEL, find_folder

QUESTIONS = ["how do I delete a folder?", "what is the weather like?", "which drug lowers a fever?"]
ANSWERS = [
    "Removing a directory and everything in it cannot be undone.",
    "Tomorrow it will rain in the north, with some sun later.",
    "Paracetamol is taken against pain and high temperature.",
]


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return embedforge.load(device="cpu")


def test_it_finds_answers_that_share_no_word_with_the_question(model: SentenceTransformer) -> None:
    scores = model.encode_query(QUESTIONS) @ model.encode_document(ANSWERS).T
    assert scores.argmax(axis=1).tolist() == [0, 1, 2]


def test_plain_sentence_transformers_gives_the_same_vectors(model: SentenceTransformer) -> None:
    folder = str(find_folder(DEFAULT_MODEL))
    plain = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.float32})
    ours = model.encode(QUESTIONS + ANSWERS + ["", "日本語 🙂"])
    theirs = plain.encode(QUESTIONS + ANSWERS + ["", "日本語 🙂"])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_folder_with_it_loads_by_its_path(model: SentenceTransformer, tmp_path: Path) -> None:
    shutil.copytree(find_folder(DEFAULT_MODEL), tmp_path / "model")
    np.testing.assert_array_equal(
        embedforge.load(tmp_path / "model", device="cpu").encode(QUESTIONS), model.encode(QUESTIONS)
    )


def test_a_cut_vector_ranks_as_the_whole_one(model: SentenceTransformer) -> None:
    vectors = np.asarray(encode(embedding_model(model), QUESTIONS + ANSWERS))
    for dims in (192, 96):
        cut = vectors[:, :dims] / np.linalg.norm(vectors[:, :dims], axis=1, keepdims=True)
        assert (cut[:3] @ cut[3:].T).argmax(axis=1).tolist() == [0, 1, 2]


def test_its_folder_is_small_and_names_no_place_of_the_machine_it_was_made_on() -> None:
    folder = find_folder(DEFAULT_MODEL)
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 64e6
    for path in folder.rglob("*.json"):
        assert "/runs/" not in path.read_text(encoding="utf-8")
        assert str(Path.home()) not in path.read_text(encoding="utf-8") or str(Path.home()) == "/"
