"""Sections of documents, near-duplicates, the split of a corpus, and the examples made of it."""

from __future__ import annotations

import itertools
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedforge.errors import EmbedforgeError
from embedforge.quickstart.corpus import Corpus, read_corpus
from embedforge.quickstart.examples import cluster_examples, retrieval_examples, retrieval_pool
from embedforge.quickstart.source_units import text_units
from embedforge.quickstart.split import drop_repeats
from embedforge.quickstart.unit import Unit
from embedforge.text.near import near_duplicates

# --- Markdown and text -------------------------------------------------------------------------------

LONG = "This paragraph says one thing and then another thing. " * 4
MARKDOWN = f"""---
title: "Guide"
---
# The [Tool](http://x) <a id="t"></a>

{LONG}

## Install `it`

{LONG}

```sh
# not a heading
pip install it
```

### Short

See above.

Setext
------

{LONG}
## See also
* [one](1)
* [two](2)
* [a much longer link text to pass the minimum length of a section, which is more](3)
* [a much longer link text to pass the minimum length of a section, which is more](4)
"""


def sections_of(text: str, name: str = "guide.md") -> dict[str, Unit]:
    return {unit.query: unit for unit in text_units(text.encode(), name, "guide")[0]}


def test_sections_are_found_by_the_path_of_their_headings():
    sections = sections_of(MARKDOWN)
    assert list(sections) == [
        "Guide > The Tool",
        "Guide > The Tool > Install it",
        "Guide > The Tool > Setext",
    ]
    section = sections["Guide > The Tool > Install it"]
    assert section.document == f"{LONG}\n\n```sh\n# not a heading\npip install it\n```"
    assert MARKDOWN.split("\n")[int(section.id.split(":")[1]) - 1] == "## Install `it`"


def test_restructured_text_levels_follow_their_first_use():
    text = f"=====\nTitle\n=====\n\n{LONG}\n\nPart\n~~~~\n\n{LONG}\n\nNext part\n~~~~~~~~~\n\n{LONG}\n"
    assert list(sections_of(text, "a.rst")) == ["Title > Part", "Title > Next part"]


def test_plain_text_with_a_title():
    sections = sections_of(f"On the origin of things\n\n{LONG}\n\n# no heading here\n\n{LONG}", "a.txt")
    assert list(sections) == ["On the origin of things"]


def test_text_without_headings_is_cut_into_passages():
    text = "\n\n".join(f"Passage {n} begins with this sentence. {LONG * 4}" for n in range(4))
    units = text_units(text.encode(), "a.txt", "a")[0]
    assert units[0].query == "Passage 0 begins with this sentence."
    assert len(units) == 2
    assert all(unit.kind == "passage" and unit.query not in unit.document for unit in units)
    lines = text.split("\n")
    assert all(lines[int(unit.id.split(":")[1]) - 1].startswith("Passage") for unit in units)


# --- near-duplicates ---------------------------------------------------------------------------------


def test_near_duplicates_are_found_and_others_are_not():
    text = " ".join(f"word{n}" for n in range(60))
    changed = text.replace("word30", "other")  # 3 of 58 shingles differ on each side: Jaccard 0.90
    half = " ".join(f"word{n}" for n in range(30)) + " " + " ".join(f"else{n}" for n in range(30))
    assert near_duplicates([text.upper(), changed, half, "", "word1 word2"], [text, "", "word1, word2!"]) == [
        *(True, True, False, False),
        True,
    ]
    assert near_duplicates(["a"], []) == near_duplicates(["", ""], ["", ""])[:1] == [False]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12)
)
def test_the_decision_is_the_exact_jaccard_similarity(left, right):
    def shingles(words):
        width = min(3, len(words))
        return {tuple(words[at : at + width]) for at in range(len(words) - width + 1)}

    one, two = shingles(left), shingles(right)
    expected = len(one & two) / len(one | two) >= 0.8
    texts = [" ".join(map("w{}".format, words)) for words in (left, right)]
    assert near_duplicates(texts[:1], texts[1:]) == [expected]


# --- the corpus --------------------------------------------------------------------------------------

VERBS = [
    "read",
    "write",
    "open",
    "close",
    "parse",
    "print",
    "count",
    "merge",
    "split",
    "sort",
    "find",
    "send",
]
NOUNS = [
    "file",
    "line",
    "word",
    "page",
    "node",
    "tree",
    "graph",
    "table",
    "row",
    "cell",
    "key",
    "value",
    "list",
]


def write_library(folder: Path, modules: int = 25, functions: int = 6) -> Path:
    """Write modules whose functions all differ, in packages of one module each."""
    names = itertools.product(VERBS, NOUNS)
    for module in range(modules):
        code = []
        for verb, noun in itertools.islice(names, functions):
            code.append(
                f"def {verb}_{noun}({noun}, {verb}er_{module}):\n"
                f'    """{verb.title()} the {noun} of module {module} at once."""\n'
                f"    for item_{verb} in {noun}.{verb}s():\n"
                f"        {verb}er_{module}(item_{verb}, {noun!r})\n"
            )
        (folder / f"module{module}.py").write_text("\n".join(code))
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_library(tmp_path_factory.mktemp("library"))


def parts(corpus: Corpus) -> dict[str, list[Unit]]:
    return {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}


def test_no_package_is_in_two_parts_and_nothing_is_lost(library: Path):
    corpus = read_corpus(library, seed=1)
    packages = [{unit.package for unit in units} for units in parts(corpus).values()]
    assert all(packages)
    assert sum(map(len, packages)) == len(set.union(*packages)) == 25
    assert sum(map(len, parts(corpus).values())) == 150 == corpus.counts["units_found"]
    assert 0.08 <= len(corpus.test) / 150 <= 0.15
    assert len(corpus.dev) <= 0.05 * 150


def test_the_seed_decides_the_split_and_nothing_else_does(library: Path):
    assert read_corpus(library, seed=1) == read_corpus(library, seed=1)
    assert read_corpus(library, seed=1).test != read_corpus(library, seed=2).test


def test_copies_of_held_out_code_are_dropped_from_train(tmp_path: Path):
    write_library(tmp_path)
    before = read_corpus(tmp_path, seed=1)
    header, body = before.test[0].document.split("\n", 1)
    train_file = tmp_path / before.train[0].file
    copied = f'{header}\n    """A wholly new question that nobody else asks."""\n{body}  # changed\n'
    train_file.write_text(train_file.read_text() + "\n" + copied)
    after = read_corpus(tmp_path, seed=1)
    assert after.counts["units_found"] == before.counts["units_found"] + 1
    assert after.counts["near_duplicates_of_held_out"] == 1
    assert (after.train, after.test) == (before.train, before.test)


def test_files_that_cannot_be_read_are_counted(tmp_path: Path):
    write_library(tmp_path)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.py").write_text("x = 1\n" * 200_000)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "more.py").write_text("def f(:\n")
    (tmp_path / "notes.md").write_text(MARKDOWN)
    seen = []
    counts = read_corpus(tmp_path, progress=lambda done, total: seen.append((done, total))).counts
    assert counts["files_python"] == 29
    assert counts["files_not_parsed"] == 2
    assert counts["files_too_large"] == counts["files_not_readable"] == counts["folders_excluded"] == 1
    assert counts["files_of_other_kind"] == 1
    assert seen == [(done, 29) for done in range(1, 30)]


def test_limits_draw_a_sample_and_say_what_was_left_out(library: Path):
    counts = read_corpus(library, max_files=20, max_units=90).counts
    assert counts["files_over_limit"] == 5
    assert counts["units_over_limit"] == 30
    assert counts["train"] + counts["dev"] + counts["test"] == 90


def test_markdown_is_read_where_it_is_most(tmp_path: Path):
    for n in range(30):
        text = "\n".join(
            f"## Part {n} {noun}\n\n" + " ".join(f"{verb} {noun} {n}" for verb in VERBS) * 2 + "\n"
            for noun in NOUNS[:4]
        )
        (tmp_path / f"page{n}.md").write_text(f"# Page {n}\n{text}")
    (tmp_path / "LICENSE.txt").write_text(LONG)
    corpus = read_corpus(tmp_path)
    assert corpus.counts["files_text"] == 30
    assert corpus.counts["files_boilerplate"] == 1
    assert {unit.kind for unit in corpus.train} == {"section"}


def test_too_little_text_says_what_was_found_and_what_is_needed(tmp_path: Path):
    with pytest.raises(EmbedforgeError, match="no such folder"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(EmbedforgeError, match=r"found 0 .* at least 50"):
        read_corpus(tmp_path)
    write_library(tmp_path, modules=3, functions=40)
    with pytest.raises(EmbedforgeError, match="only 3 files"):
        read_corpus(tmp_path)


def test_boilerplate_and_copies_are_dropped():
    def unit(place: int, query: str, document: str) -> Unit:
        return Unit(str(place), query, document, "f", "p", "function")

    repeated = [unit(n, "Initialize  self.", f"code {n}") for n in range(4)]
    pair = [unit(10, "Do it now.", "a  b"), unit(11, "do it now", "A b"), unit(12, "Do it now.", "c")]
    kept, counts = drop_repeats(repeated + pair)
    assert [item.id for item in kept] == ["10", "12"]
    assert counts == {"queries_repeated": 4, "exact_duplicates": 1}


# --- examples ----------------------------------------------------------------------------------------


def small(*rows: tuple[str, str, str]) -> list[Unit]:
    return [Unit(f"{n}", *row[:2], "f", row[2], "function") for n, row in enumerate(rows)]


def test_equal_queries_become_one_with_several_positives():
    units = small(("Same?", "one", "p"), ("same", "two", "p"), ("Different", "ONE", "q"))
    same, different = retrieval_examples(units)
    assert same.query == "Same?"
    assert same.positives == ("one", "two")
    assert same.positive_ids == ("0", "1")
    assert different.positives == ("one",)
    assert same.instruction == different.instruction != ""


def test_the_pool_keeps_distractors_apart_from_answers():
    units = small(("Q1", "one", "p"), ("Q2", "two", "p"))
    distractors = [
        Unit("d1", "x", "One!", "f", "p", "function"),
        Unit("d2", "y", "three", "f", "p", "function"),
    ]
    pool = retrieval_pool(units, distractors)
    assert pool.queries == {"0": "Q1", "1": "Q2"}
    assert pool.documents == {"0": "one", "1": "two", "d2": "three"}
    assert pool.relevant == {"0": {"0"}, "1": {"1"}}


def test_cluster_examples_pair_within_a_package_and_contrast_with_others():
    units = small(*((f"q{package}{n}", f"d{package}{n}", package) for package in "abcd" for n in range(5)))
    examples = cluster_examples(units, seed=0, n_negatives=2)
    assert len(examples) == 20
    for unit, example in zip(units, examples, strict=True):
        form = example.query[0]
        assert example.query in {unit.query, unit.document}
        assert example.positives[0] != example.query
        assert {text[0] for text in (*example.positives, *example.negatives)} == {form}
        assert example.positives[0][1] == unit.package
        assert unit.package not in {text[1] for text in example.negatives}
        assert len(example.negatives) == len(set(example.negatives)) == 2
        assert example.symmetric
        assert not example.in_batch_negatives
    assert {example.query[0] for example in examples} == {"q", "d"}
    assert examples == cluster_examples(units, seed=0, n_negatives=2)
    assert cluster_examples(units[:5], seed=0) == []


@pytest.mark.slow
def test_the_standard_library_gives_thousands_of_units():
    corpus = read_corpus(Path(sysconfig.get_paths()["stdlib"]))
    assert len(corpus.train) > 4000
    assert 500 <= len(corpus.test) <= 1000
    assert corpus.counts["files_not_parsed"] == 0
