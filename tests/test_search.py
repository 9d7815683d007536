from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import build as build_model
from embedforge.model.encoder import embedding_model, load, save
from embedforge.search import Document, Index, build_index, fingerprint
from embedforge.search.run import search
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


# --- the verb ------------------------------------------------------------------------------------

TEXTS = {
    "a.py:1": "how deep is the river?",
    "b [bold].md:7": "A heading\n\n" + "\n".join(f"line [red]{number}[/red]" for number in range(9)),
    "c.py:3": "the engine of a market",
}


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(build_model(base=str(tiny_base), contract=Contract(max_tokens=64)), folder)
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A folder as a quickstart leaves it: a model below run/, and the index of its texts."""
    folder = tmp_path / "quickstart"
    shutil.copytree(saved, folder / "run" / "model")
    model = embedding_model(load(str(saved), "cpu"))
    contract = model.contract
    build_index(
        folder / "index",
        encode(model, list(TEXTS.values()), contract.document_prefix(), suffix=contract.document_suffix()),
        [Document(place, text, place) for place, text in TEXTS.items()],
        model=str(folder / "run" / "model"),
        contract=contract,
    )
    return folder


def test_search_ranks_as_the_model_alone_does_and_prints_the_texts(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = search(run, "engine", k=2, device="cpu")
    st = load(str(run / "run" / "model"), "cpu")
    scores = (st.encode_query(["engine"]) @ st.encode_document(list(TEXTS.values())).T)[0]
    best = np.argsort(-scores)[:2]
    assert [hit.document.text for hit in hits] == [list(TEXTS.values())[row] for row in best]
    assert [hit.score for hit in hits] == pytest.approx(scores[best].tolist(), abs=1e-2)
    search(run, "engine", k=9, device="cpu")
    out = capsys.readouterr().out
    for part in ("1.", "3.", *TEXTS, "line [red]3[/red]", "…"):
        assert part in out
    assert "line [red]4[/red]" not in out  # six lines of a text are shown


def test_search_takes_the_index_alone_and_a_folder_that_was_moved(run: Path) -> None:
    hits = search(run / "index", "river", device="cpu")
    assert len(hits) == 3
    moved = run.rename(run.with_name("elsewhere"))
    assert search(moved, "river", device="cpu") == hits
    with pytest.raises(EmbedforgeError, match=r"its model '.*' is not there any more"):
        search(moved / "index", "river", device="cpu")


def test_search_refuses_another_model(run: Path) -> None:
    contract = Contract.load(run / "run" / "model")
    contract.model_copy(update={"default_instruction": "Find songs", "goldens": ()}).save(
        run / "run" / "model"
    )
    with pytest.raises(EmbedforgeError, match="whose contract differs"):
        search(run, "river", device="cpu")


def test_search_without_index_or_query(run: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbedforgeError, match=r"no index here; make one with: embedforge quickstart --out"):
        search(tmp_path, "river")
    with pytest.raises(EmbedforgeError, match="the query is empty"):
        search(run, " \n")
    with pytest.raises(EmbedforgeError, match="--device tpu"):
        search(run, "river", device="tpu")
