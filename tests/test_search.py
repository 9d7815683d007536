from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedforge.errors import EmbedforgeError
from embedforge.search import Document, Index, build_index, fingerprint
from embedforge.text.contract import Contract, Golden

DOCUMENTS = [
    Document("a", "first\nline", "a.py:1"),
    Document("b", "zwei ü", "b.md:2"),
    Document("c", "\udcff"),
]
VECTORS = np.eye(3, 4)
CONTRACT = Contract()


def build(folder: Path, **changes):
    arguments = {"vectors": VECTORS, "documents": DOCUMENTS, "model": "m", "contract": CONTRACT} | changes
    build_index(folder, **arguments)
    return Index.load(folder)


def test_a_search_finds_the_nearest_documents_with_their_texts(tmp_path: Path):
    index = build(tmp_path / "index")
    hits = index.search(np.array([0.1, 0.3, 0.2, 9.0]), k=2)
    assert [hit.document for hit in hits] == [DOCUMENTS[1], DOCUMENTS[2]]
    assert [hit.score for hit in hits] == pytest.approx([0.3, 0.2])
    assert len(index.search(np.ones(4), k=10)) == len(index) == 3


def test_equal_scores_keep_the_order_of_the_documents(tmp_path: Path):
    hits = build(tmp_path / "index").search(np.ones(4), k=3)
    assert [hit.document.id for hit in hits] == ["a", "b", "c"]


def test_vectors_stay_on_disk(tmp_path: Path):
    assert isinstance(build(tmp_path / "index").vectors, np.memmap)


def test_only_the_model_that_built_it_may_search(tmp_path: Path):
    index = build(tmp_path / "index")
    index.check(Contract(), "m")
    golden = Golden(text="t", prefix="", input_ids=(1,), pooling_mask=(1,), vector=(0.5,))
    for other in (Contract(max_tokens=64), Contract(goldens=(golden,))):
        with pytest.raises(EmbedforgeError, match=r"'m'.*'other'"):
            index.check(other, "other")


def test_the_fingerprint_survives_saving(tmp_path: Path):
    contract = Contract(max_tokens=77)
    contract.save(tmp_path)
    assert fingerprint(Contract.load(tmp_path)) == fingerprint(contract)


def test_a_new_index_replaces_an_old_one_and_nothing_else(tmp_path: Path):
    build(tmp_path / "index")
    assert len(build(tmp_path / "index", vectors=VECTORS[:1], documents=DOCUMENTS[:1])) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(EmbedforgeError, match="no index"):
        build(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"


def test_a_failed_build_leaves_the_old_index(tmp_path: Path):
    build(tmp_path / "index")
    with pytest.raises(EmbedforgeError, match="3 vectors for 2 documents"):
        build(tmp_path / "index", documents=DOCUMENTS[:2])
    assert len(Index.load(tmp_path / "index")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("vectors", [np.zeros((0, 4)), np.zeros(4), np.full((3, 4), np.nan)])
def test_unusable_vectors_are_refused(tmp_path: Path, vectors: np.ndarray):
    with pytest.raises(EmbedforgeError):
        build(tmp_path / "index", vectors=vectors)
    assert not (tmp_path / "index").exists()


def test_a_damaged_index_is_named(tmp_path: Path):
    folder = tmp_path / "index"
    build(folder)
    with (folder / "documents.jsonl").open("a") as file:
        file.write("more\n")
    with pytest.raises(EmbedforgeError, match="damaged"):
        Index.load(folder)
    (folder / "vectors.npy").write_bytes(b"no array")
    with pytest.raises(EmbedforgeError, match="damaged"):
        Index.load(folder)


def test_a_query_of_another_size_is_refused(tmp_path: Path):
    with pytest.raises(EmbedforgeError, match="shape"):
        build(tmp_path / "index").search(np.ones(5))


def test_no_index_is_an_error_that_names_the_file(tmp_path: Path):
    with pytest.raises(EmbedforgeError, match=r"index\.json"):
        Index.load(tmp_path)
