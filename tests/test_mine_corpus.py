"""Documents, vectors and rankings on disk: small shards, so that every file boundary is crossed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.lexical import Bm25
from embedforge.mine import corpus as corpus_module
from embedforge.mine import vectors as vectors_module
from embedforge.mine.candidates import QueryBlock
from embedforge.mine.corpus import Passage, build_corpus, id_key, text_key
from embedforge.mine.dense import DenseRanker
from embedforge.mine.documents import open_corpus, read_documents
from embedforge.mine.lexical_ranker import LexicalRanker
from embedforge.mine.run_file import RunRanker, read_run
from embedforge.mine.vectors import (
    document_files,
    embed_corpus,
    pair_scores,
    read_blocks,
    read_vectors,
    write_vectors,
)
from embedforge.nearest import exact_search
from embedforge.ranking import NOTHING

WORDS = ["river", "sea", "bread", "law", "judge", "oven", "wave", "ship", "tide", "loaf"]
DOCUMENTS = [
    Passage(f"d{row}", f"{WORDS[row % 10]} {WORDS[row * 3 % 10]} {WORDS[row // 7 % 10]} {row}")
    for row in range(40)
]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus_module, "SHARD_ROWS", 7)
    return build_corpus(tmp_path / "corpus", lambda: DOCUMENTS, "these")


def random_vectors(rows: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, 12)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- documents ---------------------------------------------------------------------------------------


def test_a_corpus_gives_back_what_was_put_in(corpus):
    assert len(corpus) == 40
    assert [shard.rows for shard in corpus.shards] == [7, 7, 7, 7, 7, 5]
    assert [text for shard in corpus.shards for window in corpus.windows(shard, 3) for text in window] == [
        document.text for document in DOCUMENTS
    ]
    rows = np.array([39, 0, 7, 6, 7])
    assert corpus.documents(rows) == {row: DOCUMENTS[row] for row in rows.tolist()}


def test_documents_are_found_by_id_and_by_text(corpus):
    assert corpus.rows_of_ids([id_key("d30"), id_key("none")]) == {id_key("d30"): 30}
    assert corpus.rows_of_texts([text_key(DOCUMENTS[13].text.upper() + "  ")]) == {
        text_key(DOCUMENTS[13].text): 13
    }
    keys = corpus.text_keys(np.array([[3, NOTHING], [39, 3]]))
    assert keys[0, 0] == keys[1, 1] == text_key(DOCUMENTS[3].text)
    assert keys[0, 1] == 0


def test_the_same_source_is_not_read_again(corpus):
    def fail():
        raise AssertionError

    assert build_corpus(corpus.folder, fail, "these") == corpus
    assert build_corpus(corpus.folder, lambda: DOCUMENTS[:3], "others").fingerprint != corpus.fingerprint


def test_a_corpus_that_was_cut_off_is_written_again(corpus):
    def cut_off():
        yield from DOCUMENTS[:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus(corpus.folder, cut_off, "these, another time")
    assert build_corpus(corpus.folder, lambda: DOCUMENTS, "these") == corpus


def test_missing_positives_are_added_once_at_the_end(tmp_path: Path):
    positives = [
        Passage("", DOCUMENTS[2].text.upper()),  # there, by text
        Passage("d3", "another text of document 3"),  # there, by id
        Passage("new", "not there"),
        Passage("", "Not  there"),
    ]
    corpus = build_corpus(tmp_path, lambda: DOCUMENTS, "x", positives=positives)
    assert len(corpus) == 41
    assert corpus.added == 1
    assert corpus.documents(np.array([40]))[40] == Passage("new", "not there")


def test_an_id_that_stands_twice_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus_module, "SHARD_ROWS", 7)
    monkeypatch.setattr(corpus_module, "_KEYS_AT_ONCE", 10)
    twice = [*DOCUMENTS, Passage("d5", "once more")]
    with pytest.raises(EmbedforgeError, match=r"two documents have the id 'd5': number 6, .* number 41"):
        build_corpus(tmp_path, lambda: twice, "x")
    assert len(build_corpus(tmp_path, lambda: [Passage("", "a"), Passage("", "b")], "y")) == 2


def test_an_empty_corpus_is_an_error(tmp_path: Path):
    with pytest.raises(EmbedforgeError, match="no document to mine from"):
        build_corpus(tmp_path, list, "x")


def test_a_file_of_documents_is_read_with_titles_and_ids(tmp_path: Path):
    path = tmp_path / "docs.jsonl"
    path.write_text('{"id": 1, "title": "Sea", "text": "salt"}\n{"_id": "b", "text": "law", "url": "x"}\n')
    assert list(read_documents(path)) == [Passage("1", "Sea salt"), Passage("b", "law")]
    path.write_text('{"body": "salt"}\n')
    with pytest.raises(EmbedforgeError, match=r"docs.jsonl, line 1: there is no 'text'"):
        list(read_documents(path))


def test_the_examples_own_documents_are_positives_and_negatives(tmp_path: Path):
    examples = [
        Example("q", ("one", "two"), ("three",), positive_ids=("1", "2"), negative_ids=("3",)),
        Example("r", ("Two",), ("three",), positive_ids=("2",)),
    ]
    corpus = open_corpus(None, examples, tmp_path)
    assert [document.text for document in corpus.documents(np.arange(4)).values()] == [
        "one",
        "two",
        "three",
        "three",
    ]


# --- vectors -----------------------------------------------------------------------------------------


def test_vectors_are_written_in_windows_and_read_in_blocks(tmp_path: Path):
    vectors = random_vectors(50)
    write_vectors(tmp_path / "a.npy", [vectors[:3], vectors[3:]])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), vectors)
    np.testing.assert_array_equal(np.concatenate(list(read_blocks(tmp_path / "a.npy", 8))), vectors)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_window_that_is_not_finite_leaves_no_file(tmp_path: Path):
    with pytest.raises(EmbedforgeError, match="not finite"):
        write_vectors(tmp_path / "a.npy", [random_vectors(3), np.full((1, 12), np.nan, dtype=np.float32)])
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_cut_is_named(tmp_path: Path):
    path = tmp_path / "a.npy"
    write_vectors(path, [random_vectors(9)])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(EmbedforgeError, match="cut off"):
        read_vectors(path)
    path.write_bytes(b"nothing")
    with pytest.raises(EmbedforgeError, match="not a file of vectors"):
        read_vectors(path)


def test_embedding_goes_on_at_the_first_shard_that_is_missing(corpus, tmp_path: Path):
    seen: list[str] = []

    def embed(texts):
        if len(seen) == 21:
            raise KeyboardInterrupt
        seen.extend(texts)
        return np.array([[float(text.split()[-1]), 1] for text in texts], dtype=np.float32)

    with pytest.raises(KeyboardInterrupt):
        embed_corpus(tmp_path / "v", corpus, embed)
    assert [path.exists() for path in document_files(tmp_path / "v", corpus)] == [True] * 3 + [False] * 3
    seen.insert(0, "one more")
    embed_corpus(tmp_path / "v", corpus, embed)
    assert seen[1:] == [document.text for document in DOCUMENTS]


def test_within_a_shard_only_the_window_under_way_is_lost(
    corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An endpoint that fails after an hour has been paid for that hour."""
    monkeypatch.setattr(vectors_module, "TEXTS_PER_WINDOW", 2)
    calls: list[list[str]] = []

    def embed(texts: list[str]) -> np.ndarray:
        calls.append(texts)
        if len(calls) == 3:
            raise EmbedforgeError("the endpoint is gone")
        return np.array([[float(text.split()[-1]), 1] for text in texts], dtype=np.float32)

    with pytest.raises(EmbedforgeError, match="gone"):
        embed_corpus(tmp_path / "v", corpus, embed)
    embed_corpus(tmp_path / "v", corpus, embed)
    assert calls[2] == calls[3]
    assert [text for texts in calls[:2] + calls[3:] for text in texts] == [item.text for item in DOCUMENTS]
    files = document_files(tmp_path / "v", corpus)
    assert np.concatenate(list(map(read_vectors, files)))[:, 0].tolist() == list(range(40))
    assert sorted((tmp_path / "v").iterdir()) == sorted(files)


def test_vectors_of_another_width_are_no_vectors_of_this_teacher(tmp_path: Path):
    with pytest.raises(EmbedforgeError, match="of 12 dimensions, then of 5"):
        write_vectors(tmp_path / "a.npy", [random_vectors(3), random_vectors(3)[:, :5]])


def test_what_a_killed_writer_left_is_removed(tmp_path: Path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process in (gone.pid, os.getppid()):
        (tmp_path / f".a.npy.{process}.partial").write_bytes(b"half")
    write_vectors(tmp_path / "a.npy", [random_vectors(3)])
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", f".a.npy.{os.getppid()}.partial"}


# --- rankings ----------------------------------------------------------------------------------------


@pytest.fixture
def block(corpus, tmp_path: Path):
    queries = random_vectors(5, seed=1)
    for path, shard in zip(document_files(tmp_path / "v", corpus), corpus.shards, strict=True):
        write_vectors(path, [random_vectors(40)[shard.first : shard.first + shard.rows]])
    write_vectors(tmp_path / "v" / "queries-key.npy", [queries])
    asked = [f"{WORDS[row]} {WORDS[row + 1]}" for row in range(5)]
    return QueryBlock(0, [Example(text, ("p",), query_id=str(row)) for row, text in enumerate(asked)], "key")


def test_shards_rank_as_the_whole_does(corpus, block, tmp_path: Path):
    ranker = DenseRanker("m", tmp_path / "v", corpus, 9)
    wanted = exact_search(random_vectors(5, seed=1), random_vectors(40), 9)
    for _ in range(2):  # once more from what was stored
        for found, expected in zip(ranker.candidates(block), wanted, strict=True):
            np.testing.assert_array_equal(found, expected)
    query, document = np.array([4, 0, 4]), np.array([39, 3, 0])
    scores = ranker.scores(block, query, document)
    np.testing.assert_allclose(
        scores, (random_vectors(5, seed=1)[query] * random_vectors(40)[document]).sum(1), rtol=1e-5
    )


def test_a_search_that_was_killed_goes_on_after_the_last_shard(corpus, block, tmp_path: Path):
    expected = DenseRanker("m", tmp_path / "v", corpus, 9).candidates(block)
    for state in (tmp_path / "v").glob("nearest-*"):
        state.unlink()
    last = document_files(tmp_path / "v", corpus)[4]
    hidden = last.rename(last.with_suffix(".away"))
    with pytest.raises(FileNotFoundError):
        DenseRanker("m", tmp_path / "v", corpus, 9).candidates(block)
    hidden.rename(last)
    for path in document_files(tmp_path / "v", corpus)[:4]:
        path.unlink()  # they are not needed any more
    for found, wanted in zip(
        DenseRanker("m", tmp_path / "v", corpus, 9).candidates(block), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_pairs_are_scored_across_shards_in_any_order(corpus, block, tmp_path: Path):
    files = document_files(tmp_path / "v", corpus)
    random = np.random.default_rng(3)
    query, document = random.integers(0, 5, 200), random.integers(0, 40, 200)
    found = pair_scores(random_vectors(5, seed=1), files, query, document)
    expected = np.einsum("ij,ij->i", random_vectors(5, seed=1)[query], random_vectors(40)[document])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bm25_by_shards_ranks_as_the_whole_does(corpus, block, tmp_path: Path):
    queries = [example.query for example in block.examples]
    ranker = LexicalRanker("bm25", tmp_path / "w", corpus, queries, 9)
    indices, scores = ranker.candidates(block)
    whole = Bm25([document.text for document in DOCUMENTS])
    wanted, best = whole.search(queries, 9)
    np.testing.assert_allclose(scores, best, rtol=1e-5)
    np.testing.assert_array_equal(indices, np.where(best > 0, wanted, NOTHING))
    query, document = np.array([1, 0, 4]), np.array([39, 0, 1])
    expected = [whole.scores(queries[q])[d] for q, d in zip(query, document, strict=True)]
    np.testing.assert_allclose(ranker.scores(block, query, document), expected, rtol=1e-5)


def test_a_run_file_ranks_by_its_scores(corpus, block, tmp_path: Path):
    run = tmp_path / "bm25.trec"
    run.write_text(
        "0 Q0 d3 1 2.5 t\n0 Q0 d9 2 7.5 t\n0\tQ0\td1\t3\t1\tt\nother Q0 d0 1 9 t\n\n4 Q0 d0 1 -1 t\n"
    )
    ranker = RunRanker(f"run:{run}", corpus, block.examples, 2)
    indices, scores = ranker.candidates(block)
    assert indices[0].tolist() == [9, 3]
    assert scores[0].tolist() == [7.5, 2.5]
    assert indices[4].tolist() == [0, NOTHING]
    assert ranker.missing == 3
    known = ranker.scores(block, np.array([0, 0, 1]), np.array([3, 1, 3]))
    assert known[0] == 2.5
    assert np.isnan(known[1:]).all()


def test_a_document_without_a_text_is_passed_over_and_counted(block, tmp_path: Path):
    """Also where another tool ranked it."""
    file, run = tmp_path / "corpus.jsonl", tmp_path / "dense.trec"
    file.write_text(
        '{"_id": 3, "text": "sea"}\n{"_id": 4, "title": "", "text": ""}\n{"text": null}\n{"text": "x"}\n'
    )
    corpus = open_corpus(file, [], tmp_path / "work")
    assert (len(corpus), corpus.empty) == (2, ("4", ""))
    assert open_corpus(file, [], tmp_path / "work") == corpus
    run.write_text("0 Q0 4 1 9 t\n0 Q0 3 2 7.5 t\n")
    indices, scores = RunRanker(f"run:{run}", corpus, block.examples, 2).candidates(block)
    assert indices[0].tolist() == [0, NOTHING]
    assert scores[0][0] == 7.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 Q0 d3 1 2.5\n", "line 1: expected 'query-id Q0 document-id rank score tag'"),
        ("0 Q0 d3 1 high t\n", "line 1: expected"),
        ("0 Q0 d3 1 nan t\n", "line 1: expected"),
        ("0 Q0 d3 1 1 t\n0 Q0 d3 2 1 t\n", "line 2: query '0' has 'd3' a second time"),
        ("0 Q0 d99 1 1 t\n", "ranks the document 'd99'"),
        ("9 Q0 d3 1 1 t\n", "holds none of the 5 queries; their ids look like '0'"),
    ],
)
def test_a_run_file_that_does_not_fit_is_named(corpus, block, tmp_path: Path, text: str, message: str):
    run = tmp_path / "r.trec"
    run.write_text(text)
    with pytest.raises(EmbedforgeError, match=message):
        RunRanker(f"run:{run}", corpus, block.examples, 2)


def test_a_run_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(EmbedforgeError, match="cannot be read as a run file"):
        read_run(tmp_path / "none.trec", {"0"}, 3)
