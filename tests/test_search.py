from __future__ import annotations

import json
import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedforge
from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.files import try_lock
from embedforge.lexical import Bm25
from embedforge.model.encoder import build as build_model
from embedforge.model.encoder import embedding_model, load, save
from embedforge.model.folder import DEFAULT_MODEL
from embedforge.search import Document, Index, build_index, folder_store
from embedforge.search import run as verbs
from embedforge.search.build import change_index, compact_index
from embedforge.search.embedder import Embedder
from embedforge.search.files import update_index
from embedforge.search.lance_store import exists
from embedforge.search.places import find_store
from embedforge.search.run import search
from embedforge.search.snippet import snippet_of
from embedforge.search.sources import documents_of, sources_of
from embedforge.search.store import Change
from embedforge.text.contract import Contract, Golden

DOCUMENTS = [
    Document("a", "first\nline", "a.py:1", {"file": "a.py", "year": 2019, "new": False}),
    Document("b", "zwei ü line", "b.md:2", {"file": "docs/b.md", "year": 2024, "new": True}),
    Document("c", "\udcff", "", {"file": "docs/c.md"}),
]
VECTORS = np.eye(3, 4, dtype=np.float32)
CONTRACT = Contract()
ASKED = np.array([0.1, 0.3, 0.2, 9.0])


@pytest.fixture(params=["folder", "lancedb"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An index to be, of either store."""
    if request.param == "folder":
        return str(tmp_path / "index")
    pytest.importorskip("lancedb")
    return f"lance://{tmp_path / 'lance'}"


def build(where: str | Path, **changes: Any) -> Index:
    arguments = {"vectors": VECTORS, "documents": DOCUMENTS, "model": "m", "contract": CONTRACT} | changes
    build_index(where, **arguments)
    return Index.open(where)


def found(index: Index, query: str = "line", k: int = 9, **settings: Any) -> list[str]:
    return [hit.document.id for hit in index.search(query, k, **settings)]


OFTEN = ("the River is cold", "the  River is  cold", "The river\n is cold")
REPEATED = [
    *(Document(f"copy{n}", OFTEN[n % 3], f"copy{n}.md", {"file": f"copy{n}.md"}) for n in range(150)),
    *(Document(f"long{n}", f"a cold river {n}", f"long.md, line {n}", {"file": "long.md"}) for n in range(6)),
    *(Document(f"row{n}", f"cold as row {n}", f"rows.csv, line {n}", {"file": "rows.csv"}) for n in range(5)),
    Document("other", "nothing of it, but cold", "other.md", {"file": "other.md"}),
]
MEANT = np.linspace(1.0, 0.5, len(REPEATED))[:, None] * np.eye(1, 4)


@pytest.mark.parametrize("mode", ["fused", "dense", "lexical"])
def test_a_text_that_is_there_many_times_is_one_hit_that_names_the_other_places(
    where: str, mode: Any
) -> None:
    index = build(where, documents=REPEATED, vectors=MEANT)
    hits = index.search("cold river", 4, mode=mode, vector=np.eye(4)[0])
    ids = [hit.document.id for hit in hits]
    assert ids[0].startswith("copy")  # which of equals is the first is the store's affair
    assert ids[1:3] == ["long0", "long1"]
    assert {ids[0], *(place.id for place in hits[0].also)} == {f"copy{n}" for n in range(150)}
    assert not any(hit.also for hit in hits[1:])
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_paragraph_that_stands_in_many_passages_is_one_hit(where: str) -> None:
    paragraph = "The river is deep and cold at the old bridge, and nobody swims in it. " * 6
    longer = [Document(f"p{n}", f"{paragraph}\n\n{f'stone {n} ' * 90}", f"p{n}.md") for n in range(4)]
    vectors = np.eye(5, 8, dtype=np.float32)
    index = build(where, documents=[*longer, Document("q", "a cold river", "q.md")], vectors=vectors)
    hits = index.search("cold river", 5, mode="lexical")
    assert sorted(len(hit.also) for hit in hits) == [0, 3]
    asked = {"mode": "dense", "vector": np.ones(8)}
    assert len(found(index, "an engine", 5, **asked)) == 5  # without a shared word whole texts are compared


def test_a_file_gives_two_passages_and_names_the_rest_where_others_are_found_too(where: str) -> None:
    index = build(where, documents=REPEATED, vectors=MEANT)
    asked = {"mode": "dense", "vector": np.eye(4)[0]}
    hits = index.search("cold", 9, **asked)
    ids = ["copy0", "long0", "long1", "row0", "row1", "row2", "row3", "row4", "other"]
    assert [hit.document.id for hit in hits] == ids  # records are no passages of their file
    assert {hit.document.id: [place.id for place in hit.more] for hit in hits if hit.more} == {
        "long1": ["long2", "long3", "long4", "long5"]
    }
    assert found(index, k=10, **asked) == [*ids[:3], "long2", *ids[3:]]  # there are not enough others
    assert found(index, k=5, per_file=0, **asked) == ["copy0", "long0", "long1", "long2", "long3"]
    assert found(index, k=3, per_file=1, **asked) == ["copy0", "long0", "row0"]
    assert found(index, k=9, filters=["file=long.md"], **asked) == [f"long{n}" for n in range(6)]


# --- searching ---------------------------------------------------------------------------------------


def test_a_search_by_meaning_finds_the_nearest_documents_with_their_texts(where: str) -> None:
    index = build(where)
    hits = index.search("a question", 2, mode="dense", vector=ASKED)
    assert [(hit.document.id, hit.document.metadata) for hit in hits] == [
        ("b", DOCUMENTS[1].metadata),
        ("c", DOCUMENTS[2].metadata),
    ]
    assert [hit.score for hit in hits] == pytest.approx([0.3, 0.2])
    assert len(found(index, mode="dense", vector=ASKED)) == len(index) == 3


def test_equal_scores_keep_the_order_of_the_documents(tmp_path: Path) -> None:
    assert found(build(tmp_path / "index"), mode="dense", vector=np.ones(4)) == ["a", "b", "c"]


def test_a_search_by_words_scores_as_bm25_over_all_documents_does(where: str) -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(f"word{rank % 50}" for rank in random.zipf(1.5, 20)) for _ in range(60)]
    documents = [Document(str(row), text) for row, text in enumerate(texts)]
    build_index(where, np.eye(60, 64), documents[:60], model="m", contract=CONTRACT)
    if "://" not in where:  # in several segments, with some removed, the scores are those of what is left
        build_index(where, np.eye(30, 64), documents[:30], model="m", contract=CONTRACT)
        change_index(where, Change([*documents[30:], Document("x", "word1")], np.eye(31, 64)))
        change_index(where, Change(remove_ids=["x"]))
    scores = Bm25(texts, tokenization="identifiers").scores("word3 word7 word3")
    hits = Index.open(where).search("word3 word7 word3", 60, mode="lexical")
    assert {hit.document.id for hit in hits} == {str(row) for row in np.flatnonzero(scores)}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    if "://" not in where:
        assert [hit.score for hit in hits] == pytest.approx([scores[int(hit.document.id)] for hit in hits])


def test_by_default_both_sides_are_fused_with_equal_weights(where: str) -> None:
    hits = build(where).search("zwei line", 9, vector=ASKED)
    assert {hit.document.id for hit in hits} == {"a", "b", "c"}
    best = hits[0]
    assert (best.document.id, best.score, best.dense) == ("b", 1, pytest.approx(0.3))
    for hit in hits:  # by meaning 0.1 is the least and 0.3 the best, by words 0 and what the best has
        expected = 0.5 * (hit.dense - 0.1) / 0.2 + 0.5 * (hit.lexical or 0) / best.lexical  # type: ignore[operator]
        assert hit.score == hit.fused == pytest.approx(expected, abs=1e-6)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize(("share", "expected"), [(0, ["b", "a", "c"]), (1, ["b", "c", "a"])])
def test_an_index_keeps_its_weight_of_meaning(where: str, share: float, expected: list[str]) -> None:
    index = build(where, dense_share=share)
    assert index.facts.dense_share == share
    assert found(index, "zwei line", vector=ASKED) == expected


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["file=a.py"], ["a"]),
        (["file=docs/*"], ["b", "c"]),
        (["file=docs/*", "year>2000"], ["b"]),
        (["file=a.py,docs/c.md"], ["a", "c"]),
        (["file!=*.md"], ["a"]),
        (["year<=2019"], ["a"]),
        (["year!=2019"], ["b"]),
        (["new=true"], ["b"]),
        (["file=[a].py"], []),
    ],
)
def test_filters_by_metadata_are_the_same_in_both_stores(
    built: tuple[Index, ...], filters: list[str], expected: list[str]
) -> None:
    for index in built:
        assert sorted(found(index, mode="dense", vector=ASKED, filters=filters)) == expected
        assert sorted(found(index, "zwei first line", mode="lexical", filters=filters)) == [
            name for name in expected if name != "c"
        ]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, ...]:
    """The same index in each store that is installed."""
    folder = tmp_path_factory.mktemp("built")
    try:
        import lancedb  # noqa: F401
    except ImportError:
        return (build(folder / "index"),)
    return build(folder / "index"), build(f"lance://{folder / 'lance'}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": ["yaer>2000"]}, r"no document of this index has the field 'yaer'; it has: .*'year'"),
        ({"filters": ["new"]}, "write it as lang=en"),
        ({"mode": "dens"}, "Did you mean 'dense'"),
        ({"query": " "}, "the query is empty"),
        ({"per_file": -1}, "per_file is a number of passages, or 0 for no limit; got -1"),
        ({"k": 0}, "at least 1; got 0"),
        ({"vector": np.ones(5)}, r"the query has shape \(5,\)"),
        ({"vector": np.full(4, np.nan)}, "not a number"),
    ],
)
def test_a_search_that_cannot_be_done_says_why(
    built: tuple[Index, ...], arguments: dict[str, Any], message: str
) -> None:
    for index in built:
        with pytest.raises(EmbedforgeError, match=message):
            index.search(**({"query": "line", "vector": ASKED} | arguments))


def test_only_the_model_that_built_it_may_search(where: str) -> None:
    index = build(where)
    index.check(Contract(), "m")
    golden = Golden(text="t", prefix="", input_ids=(1,), pooling_mask=(1,), vector=(0.5,))
    for other in (Contract(max_tokens=64), Contract(goldens=(golden,))):
        with pytest.raises(EmbedforgeError, match=r"'m'.*'other'"):
            index.check(other, "other")


def test_the_fingerprint_survives_saving(tmp_path: Path) -> None:
    contract = Contract(max_tokens=77)
    contract.save(tmp_path)
    assert Contract.load(tmp_path).fingerprint == contract.fingerprint


def test_a_snippet_shows_the_part_with_the_most_of_the_querys_words() -> None:
    text = "Nothing here. " * 40 + "The parser reads a readLines call.\n" + "More of it. " * 40
    snippet = snippet_of(text, "lines that the parser reads", 120)
    assert len(snippet.text) <= 120
    assert [snippet.text[start:end] for start, end in snippet.matches] == ["parser", "reads", "Lines"]
    assert snippet.cut_before
    assert snippet.cut_after
    assert snippet_of("short", "other words").text == "short"
    assert snippet_of("東京都の猫", "京都").matches == ((1, 3),)


# --- changing ----------------------------------------------------------------------------------------


def test_documents_are_added_replaced_and_removed_and_compacting_changes_no_answer(where: str) -> None:
    build(where)
    new = [Document("b", "another text", metadata={"lang": "en"}), Document("d", "fourth line")]
    vectors = np.array([[0, 0, 0, 1.0], [1.0, 0, 0, 0]])
    change_index(where, Change(new, vectors, remove_files=["a.py"]))
    index = Index.open(where)
    for _ in range(2):
        assert sorted(found(index, mode="dense", vector=ASKED)) == ["b", "c", "d"]
        assert found(index, "another line", mode="lexical") in (["b", "d"], ["d", "b"])
        assert found(index, mode="dense", vector=ASKED, filters=["lang=en"]) == ["b"]
        assert not found(index, "zwei", mode="lexical")
        compact_index(where)
        index.refresh()
    change_index(where, Change(remove_ids=["b", "c", "d"]))
    assert index.refresh()
    assert len(index) == 0
    assert not index.search("line", vector=ASKED)


def test_an_open_index_stays_whole_while_it_is_rebuilt_and_goes_on_when_told(where: str) -> None:
    """Texts of the new with scores of the old: what an index held open once gave."""
    build(where)
    index = Index.open(where)
    others = [Document(str(row), f"other line {row}") for row in range(3)]
    build(where, documents=others, vectors=VECTORS[::-1].copy())
    hits = index.search("line", vector=ASKED)
    assert {hit.document.id for hit in hits} == {"a", "b", "c"}
    assert {hit.document.id: hit.dense for hit in hits} == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.2})
    assert index.refresh()
    assert not index.refresh()
    hits = index.search("line", vector=ASKED)
    assert {hit.document.id: hit.dense for hit in hits} == pytest.approx({"0": 0.2, "1": 0.3, "2": 0.1})
    build(where, contract=Contract(max_tokens=64))
    assert index.refresh()
    with pytest.raises(EmbedforgeError, match="whose contract differs"):
        index.check(CONTRACT, "m")


def test_an_index_opens_whenever_another_replaces_it(tmp_path: Path) -> None:
    build(tmp_path / "index")
    done, problems = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                marks = {
                    hit.document.location
                    for hit in Index.open(tmp_path / "index").search("line", vector=ASKED)
                }
                if len(marks) != 1:
                    problems.append(marks)
            except Exception as error:
                problems.append(error)
                return

    build(tmp_path / "index", documents=[Document(str(row), "line", "0") for row in range(3)])
    reader = threading.Thread(target=read)
    reader.start()
    for mark in range(1, 12):
        build(tmp_path / "index", documents=[Document(str(row), "line", str(mark)) for row in range(3)])
    done.set()
    reader.join()
    assert not problems


@pytest.mark.parametrize("gone", ["fields.json", "documents.jsonl", "vectors.npy", "words.npy"])
def test_an_index_replaced_between_its_record_and_its_files_opens_as_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    build(tmp_path / "index")
    open_part = folder_store._open_part

    def late(folder: Path, part: Any, record: Any) -> Any:
        if record["generation"] == "1":  # a writer comes between, and has deleted one file so far
            monkeypatch.undo()
            kept = shutil.copytree(folder / part["name"], tmp_path / "kept")
            (kept / gone).unlink()
            build(tmp_path / "index", documents=[Document(str(row), "line", "new") for row in range(3)])
            shutil.move(kept, folder / part["name"])
        return open_part(folder, part, record)

    monkeypatch.setattr(folder_store, "_open_part", late)
    hits = Index.open(tmp_path / "index").search("line", vector=ASKED)
    assert {hit.document.location for hit in hits} == {"new"}


def test_a_new_index_replaces_an_old_one_and_nothing_else(tmp_path: Path) -> None:
    build(tmp_path / "index")
    assert len(build(tmp_path / "index", vectors=VECTORS[:1], documents=DOCUMENTS[:1])) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(EmbedforgeError, match=r"no index\.json in it"):
        build(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"


def test_a_failed_build_leaves_the_old_index(where: str) -> None:
    build(where)
    for documents in (DOCUMENTS[:2], [*DOCUMENTS, Document("d", "x")]):
        with pytest.raises(EmbedforgeError, match=r"3 vectors for \d documents"):
            build(where, documents=documents)
    assert len(Index.open(where)) == 3
    if "://" not in where:
        kept = [path.name.split("-")[0] for path in Path(where).iterdir()]
        assert sorted(kept) == ["index.json", "segment"]


@pytest.mark.parametrize("vectors", [np.zeros((0, 4)), np.zeros(4), np.full((3, 4), np.nan)])
def test_unusable_vectors_are_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    with pytest.raises(EmbedforgeError):
        build(tmp_path / "index", vectors=vectors)
    assert not (tmp_path / "index").exists()


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build(folder)
    (segment,) = folder.glob("segment-*")
    with (segment / "documents.jsonl").open("a") as file:
        file.write("more\n")
    with pytest.raises(EmbedforgeError, match="damaged"):
        Index.open(folder)
    (segment / "vectors.npy").write_bytes(b"no array")
    with pytest.raises(EmbedforgeError, match="damaged"):
        Index.open(folder)
    shutil.rmtree(segment)
    with pytest.raises(EmbedforgeError, match="damaged"):
        Index.open(folder)
    (folder / "index.json").write_text('{"version": 3}')
    with pytest.raises(EmbedforgeError, match="version 3"):
        Index.open(folder)


def test_no_index_is_an_error_that_says_how_to_make_one(where: str) -> None:
    with pytest.raises(EmbedforgeError, match="there is no index here; make one with: embedforge"):
        Index.open(where)


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    build(tmp_path / "index")
    with try_lock(tmp_path / "index" / ".lock") as mine:
        assert mine
        with pytest.raises(EmbedforgeError, match="another process is writing"):
            compact_index(tmp_path / "index")
    assert compact_index(tmp_path / "index").facts.documents == len(DOCUMENTS)


def test_what_a_kill_left_of_the_first_build_is_in_nobodys_way(tmp_path: Path) -> None:
    left = tmp_path / "index" / "segment-1-0123abcd"
    left.mkdir(parents=True)
    (left / "documents.jsonl").write_text("half")
    (left.parent / ".lock").touch()
    assert len(build(tmp_path / "index")) == len(DOCUMENTS)
    assert not left.exists()


def old_index(folder: Path) -> None:
    """Write what version 1 wrote."""
    folder.mkdir()
    lines = [
        json.dumps({"id": item.id, "text": item.text, "location": item.location}).encode() + b"\n"
        for item in DOCUMENTS
    ]
    (folder / "documents.jsonl").write_bytes(b"".join(lines))
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, lines)]))
    np.save(folder / "vectors.npy", VECTORS)
    facts = {"version": 1, "model": "m", "fingerprint": CONTRACT.fingerprint, "documents": 3, "dimensions": 4}
    (folder / "index.json").write_text(json.dumps(facts))


def test_an_index_of_version_1_opens_and_becomes_one_of_today_when_it_is_changed(tmp_path: Path) -> None:
    old_index(tmp_path / "index")
    index = Index.open(tmp_path / "index")
    assert found(index, "zwei line", vector=ASKED) == ["b", "c", "a"]
    change_index(tmp_path / "index", Change([Document("d", "line")], VECTORS[:1]))
    assert found(index, "zwei line", vector=ASKED) == ["b", "c", "a"]
    assert index.refresh()
    assert sorted(found(index, "zwei line", vector=ASKED)) == ["a", "b", "c", "d"]
    assert not (tmp_path / "index" / "vectors.npy").exists()


# --- the verb search ---------------------------------------------------------------------------------


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
    hits = search(run, "engine", k=2, mode="dense", device="cpu")
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


def test_search_prints_json_and_the_scores_of_both_sides(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(run, "engine", k=2, as_json=True, device="cpu")
    printed = json.loads(capsys.readouterr().out)
    first = printed["hits"][0]
    assert (printed["mode"], first["document"]["text"]) == ("fused", "the engine of a market")
    assert first["score"] == first["fused"] > 0
    assert first["lexical"] > 0
    assert first["snippet"]["matches"] == [[4, 10]]


def test_search_names_the_other_places_of_a_text_and_a_files_further_passages(
    where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    build(where, documents=REPEATED, vectors=MEANT)
    search(where, "cold", k=9, mode="lexical")
    lines = capsys.readouterr().out.splitlines()
    assert all(line == line.rstrip() and len(line) <= 80 for line in lines)
    printed = " ".join(" ".join(lines).split())
    assert printed.count("river is cold") == 1 or printed.count("River is cold") == 1
    assert "the same text in copy" in printed
    assert "and 145 more" in printed
    assert "further passages of the file: line 2; line 3; line 4; line 5" in printed
    search(where, "cold", k=9, mode="lexical", as_json=True, per_file=0)
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert [len(hit["also"]) for hit in hits if hit["also"]] == [149]
    assert not any(hit["more"] for hit in hits)


def test_search_by_words_needs_no_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = (run / "index").rename(run.parent / "alone")
    shutil.rmtree(run)
    assert [hit.document.location for hit in search(moved, "river", mode="lexical")] == ["a.py:1"]
    assert not search(moved, "unheard", mode="lexical")
    assert "no document holds a word of the query" in capsys.readouterr().err


# --- the verb index ----------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("# River\n\nhow deep is the river?\n")
    (folder / "sub" / "b.py").write_text("def engine():\n    return 'the engine of a market'\n")
    (folder / "c.md").write_text("a stone in the garden\n")
    return folder


def test_index_embeds_only_what_has_changed(
    saved: Path, notes: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(*paths: Path, **settings: Any) -> tuple[int, int, int, int, int]:
        done = verbs.index(list(paths) or [notes], where, device="cpu", **settings)
        return done.added, done.changed, done.removed, done.same, done.embedded

    assert go(model=str(saved)) == (3, 0, 0, 0, 3)
    monkeypatch.setattr("embedforge.model.encoder.load", None)  # with nothing to embed no model is loaded
    (notes / "a.md").touch()
    assert go() == (0, 0, 0, 3, 0)
    monkeypatch.undo()
    (notes / "a.md").write_text("how cold is the river?\n")
    (notes / "c.md").unlink()
    (notes / "d.md").write_text("a new cloud\n")
    assert go() == (1, 1, 1, 1, 2)
    index = Index.open(where, device="cpu")
    assert sorted(hit.document.metadata["file"] for hit in index.search("river engine cloud", 9)) == [
        "a.md",
        "d.md",
        "sub/b.py",
    ]
    assert [hit.document.text for hit in index.search("river", mode="lexical")] == ["how cold is the river?"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "r1", "text": "a market", "lang": "en"}) + "\n")
    assert go(rows, whole=False) == (1, 0, 0, 0, 1)
    assert go() == (0, 0, 0, 3, 0)  # what was added from elsewhere stays
    index.refresh()
    assert found(index, "market", filters=["lang=en"]) == ["r1"]
    assert verbs.remove(where, ["sub/*", "r1"]) == 2
    verbs.compact(where)
    assert len(Index.open(where)) == 2


GERMAN = "Der Fluss fließt langsam durch breite Wiesen und dunkle Wälder zum Meer hinunter. "
CHINESE = "河水慢慢地流过宽阔的草地和黑暗的森林，最后汇入大海。"


def test_passages_are_as_long_as_the_model_reads_in_any_language(tmp_path: Path) -> None:
    (tmp_path / "zh.md").write_text(CHINESE * 200)
    (tmp_path / "de.txt").write_text(GERMAN * 100)
    embedder = Embedder(DEFAULT_MODEL, None)
    notices: list[str] = []
    for source in sources_of([tmp_path], tmp_path, Counter(), notices):
        embedder([document.text for document in documents_of(source, embedder.characters, Counter())])
    assert embedder.cut == 0
    assert embedder.characters("It rains in the garden. " * 99) == 1500  # as ever, in English


def test_index_says_what_it_does_not_read_and_what_the_model_does_not_take_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(folder: Path) -> str:
        verbs.index([folder], str(tmp_path / f"{folder.name}-index"))
        return capsys.readouterr().err

    english = tmp_path / "english"
    (english / "tests").mkdir(parents=True)
    (english / "a.md").write_text("The river flows slowly through wide meadows to the sea. " * 20)
    for name in ("LICENSE.md", "b.docx", "c.docx", "rows.csv", "d.pdf", "tests/e.md"):
        (english / name).write_text("text\n")
    monkeypatch.setattr("embedforge.documents.readers.find_spec", lambda name: None)
    printed = said(english)
    assert "passed over: .docx 2; licences, change logs and the like 1; folders that are hidden" in printed
    assert f"embedforge index add INDEX {english / 'rows.csv'}" in printed
    assert "pip install" in printed  # for the PDF
    assert "language" not in printed
    german = tmp_path / "german"
    german.mkdir()
    (german / "a.md").write_text(GERMAN * 20)
    assert "not the language of embedforge:forge-tiny" in said(german)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "r1", "text": "a market " * 600}) + "\n")
    assert "1 passages are longer than the 512 tokens that the model reads" in said(rows)


def test_index_refuses_another_model_another_folder_and_one_id_twice(
    saved: Path, notes: Path, tmp_path: Path
) -> None:
    where = str(tmp_path / "index")
    verbs.index([notes], where, model=str(saved), device="cpu")
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    Contract.load(other).model_copy(update={"default_instruction": "Find songs"}).save(other)
    with pytest.raises(EmbedforgeError, match=rf"'{saved}', whose contract differs from that of '{other}'"):
        verbs.index([notes], where, model=str(other))
    with pytest.raises(EmbedforgeError, match=rf"this index is of the folder {notes}"):
        verbs.index([saved.parent], where)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(2 * (json.dumps({"id": "r1", "text": "a market"}) + "\n"))
    with pytest.raises(EmbedforgeError, match=r"line 1 and .*line 2: both have the id 'r1'"):
        verbs.index([rows], where, whole=False, device="cpu")
    with pytest.raises(EmbedforgeError, match=r"no document 'a.mb'. Did you mean 'a.md'"):
        verbs.remove(where, ["a.mb"])
    with pytest.raises(EmbedforgeError, match="there is no such file or folder"):
        verbs.index([tmp_path / "none"], where, whole=False)


def test_the_index_is_part_of_the_python_api(notes: Path, saved: Path, tmp_path: Path) -> None:
    verbs.index([notes], str(tmp_path / "index"), model=str(saved), device="cpu")
    model = embedforge.load(str(saved), device="cpu")
    with embedforge.Index.open(tmp_path / "index", model=model) as index:
        assert index.search("engine", 1)[0].document.metadata["file"] == "sub/b.py"
        assert index.facts.fields == ("file", "file_hash")


# --- many vectors: signs first -----------------------------------------------------------------------


def uneven_vectors(count: int, random: np.random.Generator) -> np.ndarray:
    """Vectors that have most of what they say in a few numbers, as those of a model cut for Matryoshka."""
    vectors = random.standard_normal((count, 96), dtype=np.float32) / np.arange(1, 97, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_of_a_large_segment_what_signs_choose_is_scored_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    vectors, asked = uneven_vectors(3000, random), uneven_vectors(50, random)
    documents = [Document(str(row), f"text {row}", metadata={"part": row % 3}) for row in range(3000)]
    build_index(tmp_path / "exact", vectors, documents, model="m", contract=CONTRACT)
    monkeypatch.setattr("embedforge.search.segment.SIGNS_FROM", 900)
    monkeypatch.setattr("embedforge.search.signs.CHOSEN", 400)
    monkeypatch.setattr("embedforge.search.folder_write.SEGMENT_DOCUMENTS", 1000)
    build_index(tmp_path / "signs", vectors[:2500], documents[:2500], model="m", contract=CONTRACT)
    change_index(tmp_path / "signs", Change(documents[2500:], vectors[2500:], remove_ids=["7"]))
    assert len(list(tmp_path.glob("signs/*/signs.npy"))) == 2  # of 1000, 1000, 500 and 500
    exact, signs = Index.open(tmp_path / "exact"), Index.open(tmp_path / "signs")
    for filters in ([], ["part=1"]):
        same = 0
        for vector in asked:
            hits = signs.search("text", 10, mode="dense", vector=vector, filters=filters)
            wanted = exact.search("text", 11, mode="dense", vector=vector, filters=filters)
            kept = [hit for hit in wanted if hit.document.id != "7"][:10]
            same += len({hit.document.id for hit in hits} & {hit.document.id for hit in kept})
            scores = vectors[[int(hit.document.id) for hit in hits]] @ vector
            assert [hit.score for hit in hits] == pytest.approx(scores.tolist(), abs=1e-6)
        assert same >= 0.98 * 10 * len(asked)
    few = signs.search("text", 2000, mode="dense", vector=asked[0], filters=["part=2"])
    assert len(few) == 1000  # all that pass, and none that does not
    assert {hit.document.metadata["part"] for hit in few} == {2}


def test_a_pipe_of_records_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(EmbedforgeError, match=r"rows\.jsonl: this is a pipe"):
        sources_of([tmp_path / "rows.jsonl"], tmp_path, Counter(), [])


@pytest.mark.parametrize("uri", ["http://host/index", "nosuch://x"])
def test_an_address_that_lancedb_does_not_know_is_refused(uri: str) -> None:
    pytest.importorskip("lancedb")
    with pytest.raises(EmbedforgeError, match=f"{uri}: LanceDB cannot connect to it; lance://FOLDER"):
        exists(uri)


def test_a_search_makes_no_folder_and_an_address_holds_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lancedb")
    monkeypatch.chdir(tmp_path)
    for uri in ("lance://typo", "s3://me:secret/x@host", "s3://bucket/index?key=secret"):
        with pytest.raises(EmbedforgeError, match=r"no such folder|no user, password or query") as caught:
            find_store(uri)
        assert "secret" not in str(caught.value)
    assert not exists("lance://typo")
    assert not [*tmp_path.iterdir()]


def test_records_without_a_text_are_counted_and_ids_are_ids(saved: Path, tmp_path: Path) -> None:
    """Several public collections have empty documents, and tables number their rows."""
    file, where = tmp_path / "corpus.jsonl", tmp_path / "index"
    rows: list[dict[str, Any]] = [
        {"_id": 1, "title": "", "text": "cats purr"},
        {"_id": 2, "title": "", "text": " "},
        {"id": None, "_id": 3, "title": "dogs"},
        {"id": 4, "text": None},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = update_index(where, [file], model=str(saved))
    assert (outcome.documents, outcome.passed_over) == (2, {"records without a text": 2})
    assert sorted(name for name, _ in find_store(where).ids()) == ["1", "3"]
    for bad in (1.0, True, [1], " "):
        file.write_text(json.dumps({"id": bad, "text": "cats"}) + "\n")
        with pytest.raises(EmbedforgeError, match=r"corpus\.jsonl, line 1: 'id'"):
            update_index(tmp_path / "other", [file], model=str(saved))
