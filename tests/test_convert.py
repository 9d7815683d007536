"""Records of every kind to Examples, on records that can be checked by eye."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedforge.data.convert import read_source
from embedforge.data.kinds import from_scored_pairs, source_name
from embedforge.data.labels import from_classes, from_labels
from embedforge.data.nli import from_nli, read_nli
from embedforge.data.notes import Notes
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Source


def records(*rows: dict) -> list[Record]:
    return [Record(row, "rows.jsonl", number) for number, row in enumerate(rows, start=1)]


def labelled(*pairs: tuple) -> list[Record]:
    return records(*({"text": text, "label": label} for text, label in pairs))


ANIMALS = [
    ("cat", "mammal"),
    ("dog", "mammal"),
    ("owl", "bird"),
    ("hen", "bird"),
    ("koi", "fish"),
    ("eel", "fish"),
]
CLASS = dict(ANIMALS)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"sentence1": "a", "sentence2": "b", "score": 4.5}, "scored_pairs"),
        ({"premise": "a", "hypothesis": "b", "label": "entailment"}, "nli"),
        ({"text": "a", "label": "b", "id": 3}, "labels"),
    ],
)
def test_rows_of_another_kind_are_recognised(tmp_path: Path, row: dict, kind: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    keys = ", ".join(repr(key) for key in row if key != "id" and (kind != "nli" or key != "label"))
    with pytest.raises(EmbedforgeError, match=f"line 1: a row with {keys} is no Example.*`kind: {kind}`"):
        read_source(Source(path=str(path)), seed=0)


def test_classes_give_another_of_the_class_and_others_of_other_classes():
    examples = list(from_classes(labelled(*ANIMALS), seed=0, negatives=3))
    assert [example.query for example in examples] == list(CLASS)
    for example in examples:
        (positive,) = example.positives
        assert positive != example.query
        assert CLASS[positive] == CLASS[example.query]
        assert len(set(example.negatives)) == 3
        assert all(CLASS[text] != CLASS[example.query] for text in example.negatives)
        assert not example.in_batch_negatives


def test_classes_give_all_other_texts_where_fewer_are_there_than_asked_for():
    for example in from_classes(labelled(*ANIMALS), seed=0, negatives=7):
        assert {*example.negatives} == {text for text in CLASS if CLASS[text] != CLASS[example.query]}


def test_classes_draw_evenly():
    rows = labelled(*((f"{label}{n}", label) for label in "ab" for n in range(5)))
    drawn = [e.positives[0] for seed in range(400) for e in from_classes(rows, seed=seed, negatives=1)]
    counts = [drawn.count(f"a{n}") for n in range(5)]
    assert min(counts) > 320  # 400 expected, standard deviation 18
    assert max(counts) < 480


def test_a_lone_text_and_a_text_of_two_labels(caplog):
    rows = labelled(*ANIMALS, ("yak", "odd"), ("bat", "mammal"), ("bat", "bird"), ("cat", "mammal"))
    with caplog.at_level(logging.WARNING):
        examples = list(from_classes(rows, seed=1, negatives=10))
    assert "1 of 10 texts have no other text of their class" in caplog.text
    assert "yak" not in {example.query for example in examples}
    assert [example.query for example in examples].count("bat") == 2
    for example in examples:
        texts = (*example.positives, *example.negatives)
        assert "bat" not in texts
        assert example.query not in texts


@pytest.mark.parametrize("twin", ["bat", "  BAT "])
def test_a_text_of_two_labels_gets_negatives_from_neither_class(twin):
    rows = labelled(*ANIMALS, ("bat", "mammal"), (twin, "bird"))
    for example in from_classes(rows, seed=0, negatives=20):
        own = ("mammal", "bird") if example.query in ("bat", twin) else (CLASS[example.query],)
        assert sorted(example.negatives) == sorted(text for text in CLASS if CLASS[text] not in own)
    for example in from_labels(rows, seed=0, negatives=20):
        wanted = {"mammal", "bird", "fish"} - {*example.positives}
        assert {*example.negatives} == ({"fish"} if example.query in ("bat", twin) else wanted)


def test_the_seed_decides():
    def draw(seed: int) -> list:
        return list(from_classes(labelled(*ANIMALS), seed=seed, negatives=2))

    assert draw(1) == draw(1)
    assert any(draw(1) != draw(seed) for seed in (2, 3))


def test_labels_are_documents_with_spaces_for_underscores():
    rows = labelled(("where is it?", "card_arrival"), ("how much?", "fees"), ("when?", "card_arrival"))
    first, second, third = from_labels(rows, seed=0, negatives=7)
    assert (first.positives, first.negatives) == (("card arrival",), ("fees",))
    assert (second.positives, second.negatives) == (("fees",), ("card arrival",))
    assert third.positives == first.positives
    assert not first.in_batch_negatives


def test_label_negatives_are_other_labels():
    rows = labelled(*((f"text {n}", f"label_{n % 9}") for n in range(90)))
    for example in from_labels(rows, seed=0, negatives=4):
        assert len({*example.negatives, *example.positives}) == 5


@pytest.mark.parametrize("convert", [from_classes, from_labels])
def test_one_label_is_not_enough(convert):
    with pytest.raises(EmbedforgeError, match=r"rows\.jsonl: all 2 records have the label 'x'"):
        list(convert(labelled(("a", "x"), ("b", "x")), seed=0, negatives=1))


def test_label_numbers():
    rows = labelled(("a", 0), ("b", 1), ("c", 0), ("d", 1))
    assert [e.positives for e in from_classes(rows, seed=0, negatives=1)] == [("c",), ("d",), ("a",), ("b",)]
    with pytest.raises(EmbedforgeError, match="line 1: 'label' is the number 0"):
        list(from_labels(rows, seed=0, negatives=1))
    with pytest.raises(EmbedforgeError, match=r"line 1: 'label' must be text, found 0\.5"):
        list(from_classes(labelled(("a", 0.5)), seed=0, negatives=1))


def pair(first: str, second: str, score: object) -> dict:
    return {"sentence1": first, "sentence2": second, "score": score}


def test_scored_pairs_go_both_ways_from_the_threshold_on():
    rows = records(pair("a", "b", 4), pair("c", "d", 3.99), pair("e", "f", "5.0"))
    examples = list(from_scored_pairs(rows, threshold=4))
    assert [(e.query, e.positives) for e in examples] == [
        ("a", ("b",)),
        ("b", ("a",)),
        ("e", ("f",)),
        ("f", ("e",)),
    ]
    assert all(example.symmetric for example in examples)


@pytest.mark.parametrize("score", ["high", None, True, float("nan"), [4]])
def test_a_score_is_a_finite_number(score):
    with pytest.raises(EmbedforgeError, match="line 1: 'score'"):
        list(from_scored_pairs(records(pair("a", "b", score)), threshold=4))


def test_scores_of_another_scale():
    with pytest.raises(EmbedforgeError, match=r"threshold 4; the highest score is 0\.9"):
        list(from_scored_pairs(records(pair("a", "b", 0.9), pair("a", "c", 0.1)), threshold=4))


def nli(*rows: tuple) -> list[Record]:
    return records(*({"premise": p, "hypothesis": h, "label": label} for p, h, label in rows))


@pytest.mark.parametrize(
    "names",
    [
        ("entailment", "neutral", "contradiction"),
        (0, 1, 2),
        ("0", "1", "2"),
        ("Entailment", "-", "contradiction"),
    ],
)
def test_nli_groups_by_premise(names):
    yes, maybe, no = names
    rows = nli(
        ("p", "a", yes),
        ("q", "b", no),
        ("p", "c", no),
        ("p", "d", maybe),
        ("p", "e", yes),
        ("p", "a", yes),
        ("p", "e", no),
    )
    (example,) = from_nli(rows)
    assert (example.query, example.positives, example.negatives) == ("p", ("a", "e"), ("c",))


def test_what_is_passed_over_or_doubtful_in_nli_is_counted(caplog):
    notes = Notes()
    pairs = list(read_nli(nli(("p", "a", 0), ("p", "b", "1"), ("p", "c", "-"), ("p", "d", -1)), notes))
    assert [pair.label for pair in pairs] == ["entailment", "neutral"]
    said = {
        "pairs without a gold label, passed over": 2,
        "labels 0 and 1, read as in SNLI: 0 is entailment, 1 is neutral (words leave no doubt)": 2,
    }
    assert notes == said
    with caplog.at_level(logging.WARNING):
        list(from_nli(nli(("p", "a", 0), ("p", "b", 1))))
    assert "rows.jsonl: labels 0 and 1, read as in SNLI" in caplog.text
    caplog.clear()
    list(from_nli(nli(("p", "a", 0), ("p", "b", 1), ("p", "c", 2))))
    assert not caplog.text


@pytest.mark.parametrize("label", ["true", "yes", "entails", "--1", "0.0"])
def test_an_unknown_label_of_nli(label):
    with pytest.raises(EmbedforgeError, match=f"line 1: 'label' is '{label}'; known are entailment, neutral"):
        list(from_nli(nli(("p", "a", label))))


def test_nli_labels():
    assert [
        e.negatives
        for e in from_nli(nli(("p", "a", "entailment"), ("p", "b", "not_entailment"), ("p", "c", -1)))
    ] == [()]
    with pytest.raises(EmbedforgeError, match=r"line 2: 'label' is 'entailmnt'.*Did you mean 'entailment'\?"):
        list(from_nli(nli(("p", "a", "entailment"), ("p", "b", "entailmnt"))))
    with pytest.raises(EmbedforgeError, match="line 1: 'label' is 3"):
        list(from_nli(nli(("p", "a", 3))))
    with pytest.raises(
        EmbedforgeError, match=r"line 1: there is no 'hypothesis'.*Did you mean 'hypotesis'\?"
    ):
        list(from_nli(records({"premise": "p", "hypotesis": "a", "label": 0})))


# --- read_source ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    files = {
        "pairs.jsonl": [{"query": f"q{n}", "positive": f"p{n}"} for n in range(50)]
        + [{"query": "own", "positive": "p", "instruction": "Its own"}],
        "animals.jsonl": [{"text": text, "label": label} for text, label in ANIMALS],
        "sts.jsonl": [pair("a", "b", 5)],
        "nli.jsonl": [{"premise": "p", "hypothesis": "h", "label": "entailment"}],
        "beir/corpus.jsonl": [{"_id": "d", "text": "document"}],
        "beir/queries.jsonl": [{"_id": "q", "text": "query"}],
    }
    for name, rows in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "beir" / "qrels").mkdir()
    (tmp_path / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    return tmp_path


def test_read_source_sets_what_the_source_says(folder):
    source = Source(path="pairs.jsonl", instruction="Find", in_batch_negatives=False, symmetric=True)
    examples = read_source(source, seed=0, folder=folder)
    assert len(examples) == 51
    assert {example.source for example in examples} == {"pairs"}
    assert not any(example.in_batch_negatives for example in examples)
    assert all(example.symmetric for example in examples)
    assert [example.instruction for example in examples] == ["Find"] * 50 + ["Its own"]


def test_read_source_caps_by_the_seed(folder):
    def queries(seed: int) -> list[str]:
        return [e.query for e in read_source(Source(path="pairs.jsonl", cap=10), seed=seed, folder=folder)]

    everything = [e.query for e in read_source(Source(path="pairs.jsonl"), seed=0, folder=folder)]
    assert len(queries(0)) == 10
    assert queries(0) == queries(0) == sorted(queries(0), key=everything.index)
    assert queries(0) != queries(1)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        (Source(path="animals.jsonl", kind="labels", label_documents="labels"), 6),
        (Source(path="animals.jsonl", kind="clusters", in_batch_negatives=False), 6),
        (Source(path="sts.jsonl", kind="scored_pairs"), 2),
        (Source(path="nli.jsonl", kind="nli"), 1),
        (Source(path="beir", kind="retrieval", split="test"), 1),
    ],
)
def test_read_source_knows_every_kind(folder, source, count):
    assert len(read_source(source, seed=0, folder=folder)) == count


def test_read_source_warns_of_in_batch_negatives_of_classes(folder, caplog):
    examples = read_source(Source(path="animals.jsonl", kind="clusters"), seed=0, folder=folder)
    assert not any(example.in_batch_negatives for example in examples)
    assert not caplog.text
    read_source(Source(path="animals.jsonl", kind="clusters", in_batch_negatives=True), seed=0, folder=folder)
    assert "in_batch_negatives: false" in caplog.text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Source(path="pairs.jsonl", split="test"), "split 'test' has no effect"),
        (Source(path="pairs.jsonl", threshold=3), "threshold '3.0' has no effect"),
        (Source(path="pairs.jsonl", label_documents="labels"), "label_documents 'labels' has no effect"),
        (Source(path="beir"), "kind: retrieval"),
        (Source(path="pairs.jsonl", kind="retrieval"), "is a file, and retrieval data is a BEIR folder"),
        (Source(path="hub:owner/name", kind="retrieval"), "download the dataset"),
        (Source(path="animals.jsonl", kind="nli"), "there is no 'premise'"),
    ],
)
def test_read_source_refuses_what_it_cannot_honour(folder, source, words):
    with pytest.raises(EmbedforgeError, match=words):
        read_source(source, seed=0, folder=folder)


def test_read_source_names_an_unknown_kind_and_an_empty_result(folder):
    @dataclass
    class Loose:
        path: str = "pairs.jsonl"
        name: str = ""
        kind: str = "exampels"
        split: str = "train"
        instruction: str = ""
        in_batch_negatives: bool = True
        symmetric: bool = False
        cap: int | None = None
        label_documents: str = "examples"
        threshold: float = 4.0

    with pytest.raises(EmbedforgeError, match="Did you mean 'examples'"):
        read_source(Loose(), seed=0, folder=folder)
    (folder / "nli.jsonl").write_text('{"premise": "p", "hypothesis": "h", "label": "neutral"}\n')
    with pytest.raises(EmbedforgeError, match="no Example came out of its records as 'nli'"):
        read_source(Source(path="nli.jsonl", kind="nli"), seed=0, folder=folder)


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b/train.jsonl.gz", "train"), ("hub:owner/name", "name"), ("a/beir", "beir"), ("x.csv", "x")],
)
def test_source_name(path, name):
    assert source_name(Source(path=path)) == name
    assert source_name(Source(path=path, name="given")) == "given"


def test_the_same_in_every_process(folder):
    """Nothing depends on Python's own hash of strings, which differs from process to process."""
    program = (
        "import sys\n"
        "from embedforge.recipe import Source\n"
        "from embedforge.data.convert import read_source\n"
        "from embedforge.data.mixture import Mixture\n"
        "pairs = read_source(Source(path='pairs.jsonl', cap=20), seed=3, folder=sys.argv[1])\n"
        "animals = read_source(Source(path='animals.jsonl', kind='clusters'), seed=3, folder=sys.argv[1])\n"
        "mixture = Mixture({'p': pairs, 'a': animals}, seed=3, batch_queries=8, negatives=2)\n"
        "step = mixture.step(9)\n"
        "print(mixture.fingerprint, [t.text for t in step.texts], step.query_keys, step.document_keys)\n"
        "assert 'torch' not in sys.modules\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


# --- open datasets -------------------------------------------------------------------------------


def test_open_datasets():
    """Every dataset of a folder {task}/{name}/… of public data becomes Examples."""
    root = os.environ.get("EMBEDFORGE_OPEN_DATA", "")
    if not Path(root).is_dir() or not root:
        pytest.skip("EMBEDFORGE_OPEN_DATA names no folder of public datasets")
    kinds = {
        "retrieval": "retrieval",
        "classification": "labels",
        "clustering": "clusters",
        "sts": "scored_pairs",
        "nli": "nli",
        "reranking": "examples",
    }
    read = 0
    for task, kind in kinds.items():
        for dataset in sorted((Path(root) / task).glob("*")):
            if kind == "retrieval":
                split = sorted((dataset / "qrels").glob("*.tsv"))[0].stem
                source = Source(path=str(dataset), kind=kind, split=split)
            else:
                source = Source(
                    path=str(sorted(dataset.glob("dev.jsonl*"))[0]), kind=kind, in_batch_negatives=False
                )
            examples = read_source(source, seed=0)
            assert all(example.positives for example in examples)
            read += 1
    assert read > 0
