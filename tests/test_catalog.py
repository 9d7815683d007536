"""The catalogue: every entry is read in its published layout; the facts of the papers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml

from embedforge.data.catalog import Entry, find_entry, load_catalog, read_catalog, with_catalog_defaults
from embedforge.data.columns import open_entry, read_entry
from embedforge.data.convert import read_source
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Source, load_recipe
from published_for_tests import published, write_published

CATALOG = load_catalog()
PUBLISHED = published(CATALOG["stackexchangeclusteringp2p"].files)
CLASSES = [name for name, entry in CATALOG.items() if entry.kind in ("labels", "clusters")]
BY_HAND = [name for name, entry in CATALOG.items() if not entry.hub]
ROW = {"query": "query 1", "positives": ["passage 1"]}


def read(name: str, **settings: object) -> list:
    return read_source(Source.model_validate({"path": f"catalog:{name}", **settings}), seed=0)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: `datasets` takes `owner/name` below it for the dataset of that id."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


# --- every entry -----------------------------------------------------------------------------------


def test_every_entry_has_a_published_layout_here() -> None:
    assert set(PUBLISHED) == set(CATALOG)
    assert {name: data.hub for name, data in PUBLISHED.items()} == {
        name: entry.hub or "" for name, entry in CATALOG.items()
    }


@pytest.mark.parametrize("name", CATALOG)
def test_an_entry_is_read_from_its_published_layout(name: str, at: Path) -> None:
    wanted = PUBLISHED[name]
    if wanted.hub:
        write_published(at, wanted)
    else:
        write_rows(at / "data" / f"{name}.jsonl.gz", [ROW])
    examples = read(name, **({"label_documents": "labels"} if name in CLASSES else {}))
    first = examples[0]
    assert (first.query, first.positives) == (wanted.query, wanted.positives)
    assert set(wanted.negatives) <= set(first.negatives)
    assert first.instruction == CATALOG[name].instruction
    assert first.source == name


@pytest.mark.parametrize("name", [name for name in CLASSES if not CATALOG[name].files])
def test_classes_also_give_examples_of_their_own_class(name: str, at: Path) -> None:
    write_published(at, PUBLISHED[name])
    for example in read(name):
        assert example.symmetric
        assert not example.in_batch_negatives
        assert example.positives[0] != example.query


def test_all_configurations_are_read(at: Path) -> None:
    write_published(at, PUBLISHED["mrtydi-multilingual"])
    queries = [example.query for example in read("mrtydi-multilingual")]
    assert len(queries) == 22
    assert {"query 1ar-triplet", "query 2th-triplet"} < set(queries)


def test_rows_with_an_empty_text_are_passed_over_and_counted(
    at: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = PUBLISHED["nq"]
    rows = [*data.rows["default", "train"], {"query": " ", "answer": "x"}, {"query": "y", "answer": None}]
    write_published(at, data._replace(rows={("default", "train"): rows}))
    assert len(read("nq")) == 2
    assert "2 rows have an empty text" in caplog.text


def test_changed_columns_are_named(at: Path) -> None:
    write_published(
        at, PUBLISHED["nq"]._replace(rows={("default", "train"): [{"question": "q", "answer": "a"}]})
    )
    with pytest.raises(EmbedforgeError, match=r"no column 'query', the columns are: question, answer"):
        read("nq")


def test_another_split_can_be_asked_for(at: Path) -> None:
    write_published(at, PUBLISHED["fever"])
    assert [example.query for example in read("fever", split="test")] == ["query 3"]
    with pytest.raises(EmbedforgeError, match="cannot read the split 'dev'"):
        read("fever", split="dev")


def test_only_judged_documents_with_a_grade_are_positives(at: Path) -> None:
    write_published(at, PUBLISHED["scifact"])
    first, second = read("scifact")
    assert first.positive_ids == ("d1", "d3")
    assert second.positives == ("river 2",)


# --- prepared files --------------------------------------------------------------------------------


def test_a_prepared_file_wins_over_the_hub(at: Path) -> None:
    write_published(at, PUBLISHED["nli"])
    write_rows(at / "data" / "nli.jsonl.gz", [ROW | {"instruction": "my own"}])
    (example,) = read("nli")
    assert (example.query, example.instruction, example.symmetric) == ("query 1", "my own", True)


def test_a_prepared_file_of_classes_may_hold_rows_or_examples(at: Path) -> None:
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(4)]
    write_rows(at / "data" / "imdbclassification.jsonl.gz", rows)
    assert len(read("imdbclassification")) == 4
    write_rows(at / "data" / "imdbclassification.jsonl.gz", [ROW])
    assert [example.positives for example in read("imdbclassification")] == [("passage 1",)]


def test_label_documents_have_no_effect_on_prepared_examples_and_it_is_said(
    at: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(at / "data" / "imdbclassification.jsonl.gz", [ROW])
    read("imdbclassification")
    assert not caplog.records
    read("imdbclassification", label_documents="labels")
    assert "label_documents: labels has no effect" in caplog.text


def test_the_folder_of_relative_paths_is_that_of_the_source(tmp_path: Path) -> None:
    write_rows(tmp_path / "there" / "data" / "nq.jsonl.gz", [ROW])
    source = Source(path="catalog:nq")
    assert read_source(source, seed=0, folder=tmp_path / "there")[0].query == "query 1"


def test_a_prepared_file_may_lie_in_a_folder_of_data(at: Path) -> None:
    """Each curation has a folder of its own, with its report and its mark."""
    write_rows(at / "data" / "curated" / "nq.jsonl.gz", [ROW])
    assert read("nq")[0].query == "query 1"
    write_rows(at / "data" / "nq.jsonl.gz", [ROW])
    with pytest.raises(
        EmbedforgeError, match=r"data/nq.jsonl.gz and data/curated/nq.jsonl.gz are both there"
    ):
        read("nq")


def test_two_prepared_files_are_ambiguous(at: Path) -> None:
    for ending in (".jsonl.gz", ".jsonl"):
        write_rows(at / "data" / f"nq{ending}", [ROW])
    with pytest.raises(EmbedforgeError, match="both there; keep one"):
        read("nq")


@pytest.mark.parametrize("name", BY_HAND)
def test_data_to_bring_says_what_to_write(name: str, at: Path) -> None:
    with pytest.raises(EmbedforgeError, match=f"write data/{name}.jsonl.gz with Examples"):
        open_entry(f"catalog:{name}", split="train", kind="examples")


# --- the facts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["nv-embed-v1", "nv-embed-v2", "e5-mistral"])
def test_a_recipe_names_the_whole_mix_of_its_paper(recipe: str) -> None:
    sources = load_recipe(recipe).stages[-1].mix.sources
    named = {source.path.removeprefix("catalog:") for source in sources}
    assert named == {name for name, entry in CATALOG.items() if recipe in entry.used_by}
    for source in sources:
        entry = find_entry(source.path)
        use = entry.used_by[recipe]
        if recipe != "e5-mistral":
            assert source.cap == use.examples, source.path
        assert not entry.instructions or source.instruction in entry.instructions.get(
            "e5-mistral" if recipe == "e5-mistral" else "nv-embed", ()
        )


def test_weights_of_e5_mistral_are_the_ratios_of_the_catalogue() -> None:
    for source in load_recipe("e5-mistral").stages[0].mix.sources:
        about = find_entry(source.path).used_by["e5-mistral"].about
        assert about == ("" if source.weight == 1 else f"sample ratio {source.weight:g}") or "instr" in about


def test_numbers_that_are_only_remembered_are_marked() -> None:
    read_in_paper = {
        name
        for name, entry in CATALOG.items()
        for paper, use in entry.used_by.items()
        if paper.startswith("nv") and use.mark == "paper"
    }
    assert read_in_paper == {"synthetic"}  # 120,000 examples: the only size in the body of the paper


def test_keys_of_the_recipe_win_over_the_entry() -> None:
    assert with_catalog_defaults({"path": "a.jsonl"}) == {"path": "a.jsonl"}
    given = {"path": "catalog:nli", "symmetric": False, "instruction": "x", "split": "dev"}
    assert with_catalog_defaults(given).items() >= given.items()
    assert Source(path="catalog:sts12").symmetric
    assert Source(path="catalog:sts12").kind == "scored_pairs"
    assert not Source(path="catalog:emotionclassification").in_batch_negatives
    assert not Source(path="catalog:emotionclassification", label_documents="labels").symmetric


def test_an_unknown_entry_gets_a_suggestion() -> None:
    with pytest.raises(EmbedforgeError, match=r"no 'mscmarco' in the catalogue.*Did you mean 'msmarco'"):
        Source(path="catalog:mscmarco")


ENTRY = {
    "title": "t",
    "hub": "a/b",
    "layout": "columns",
    "columns": {"query": "q", "positive": "p"},
    "instructions": {},
    "licence": "MIT",
    "used_by": {"nv-embed-v1": {"mark": "memory"}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licens": "MIT"}, "licens: unknown key. Did you mean 'licence'"),
        ({"hub": "https://x"}, "hub: String should match"),
        ({"hub": None}, "needs a hub id"),
        ({"columns": {"query": "q"}}, "columns must name .*'positive'"),
        ({"columns": {"query": "q", "positive": "p", "extra": "e"}}, "columns must name"),
        ({"layout": "beir"}, "'beir' has its own columns"),
        ({"layout": "beir", "columns": {}, "kind": "labels"}, "layout 'beir' gives examples"),
        ({"files": ["a"]}, "'files' belongs to layout 'files'"),
        ({"corpus": "a/b"}, "'corpus' belongs to layout 'titles'"),
        ({"used_by": {}}, "used_by"),
        ({"used_by": {"gte": {"mark": "memory"}}}, "used_by.gte"),
        ({"unverified": ["everything"]}, "unverified"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump({"mine": {**ENTRY, **change}}))
    with pytest.raises(EmbedforgeError, match=f"(?s)catalog.yaml, entry 'mine'.*{message}"):
        read_catalog(path)
    path.write_text(yaml.safe_dump({"mine": ENTRY}))
    assert read_catalog(path) == {"mine": Entry.model_validate(ENTRY)}


def test_the_columns_of_an_entry_need_the_dataset(at: Path) -> None:
    with pytest.raises(EmbedforgeError, match="cannot read the split 'train'"):
        next(read_entry(CATALOG["nq"]))
