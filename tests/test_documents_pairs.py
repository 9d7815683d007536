"""Structure pairs, and what is held out: nothing of it may be in the training text."""

from __future__ import annotations

from pathlib import Path

import pytest

from documents_for_tests import TOPICS, page, paragraph, sentence
from embedforge.documents import Chunk, Pair, read_folder
from embedforge.documents.chunks import chunks
from embedforge.documents.headings import prose_document
from embedforge.documents.hold_out import Cut, held_out_from, short_texts
from embedforge.documents.pairs import structure_pairs, usable
from embedforge.text.same import word_key

BODY = "This passage says a good deal about its subject, in more than twenty words: it is no stub. " * 2


def pairs_of(text: str, suffix: str = ".md", seed: int = 0) -> list[Pair]:
    document = prose_document(text, "a" + suffix, suffix)
    return list(structure_pairs(document, chunks(document, 600), 600, seed))


def dropped(*pairs: Pair) -> dict[str, int]:
    kept, counts = usable(pairs)
    assert len(kept) + sum(counts.values()) == len(pairs)
    return {name: count for name, count in counts.items() if count}


def make(query: str, answer: str, kind: str = "heading", file: str = "f") -> Pair:
    return Pair(f"{file}:{query}:{answer}", query, answer, kind, file, "", 0)


# --- pairs ----------------------------------------------------------------------------------------------


def test_headings_ask_with_their_path_and_the_text_below_answers():
    title, heading = pairs_of(f"# The Guide\n\n{BODY}\n\n## Setting up\n\n{'One more sentence of it. ' * 60}")
    assert (title.kind, title.query, title.document) == ("title", "The Guide", BODY.strip())
    assert (heading.kind, heading.query) == ("heading", "The Guide > Setting up")
    assert heading.document.startswith("One more")
    assert len(heading.document) <= 600
    assert (title.place, heading.place) == ("line 3", "line 7")


def test_text_without_headings_asks_with_a_sentence_taken_out_of_it():
    text = "\n\n".join(paragraph(n) for n in range(6))
    found = pairs_of(text, ".txt")
    assert len(found) >= 3
    for pair in found:
        assert pair.kind == "cloze"
        assert pair.query in text
        assert pair.query not in pair.document
        assert len(pair.query) + len(pair.document) <= 1.25 * 600
    assert found == pairs_of(text, ".txt")
    assert found != pairs_of(text, ".txt", seed=1)


def test_list_items_are_sentences_of_their_own():
    items = [f"the {TOPICS[n]} are seen on every one of these days" for n in range(8)]
    (pair,) = pairs_of("\n".join(f"* {item}" for item in items), ".txt")
    assert pair.query in items


def test_a_book_with_one_title_asks_by_its_title_and_by_sentences():
    found = pairs_of("On the origin of things\n\n" + "\n\n".join(paragraph(n) for n in range(6)), ".txt")
    assert [pair.kind for pair in found[:2]] == ["title", "cloze"]
    assert found[0].document.split()[:8] == paragraph(0).split()[:8]
    assert all(word_key(pair.query) not in word_key(found[0].document) for pair in found[1:])


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (make("A good question", "See below."), "pairs_near_empty"),
        (make("Usage", BODY), "pairs_query_too_short"),
        (make("The tool > Introduction", BODY), "pairs_boilerplate"),
        (make("The tool > MIT License", BODY), "pairs_boilerplate"),
        (make("Tool > Opening a file", f"Opening a file\nis done so: {BODY}"), "pairs_query_in_answer"),
        (make("Links to read", "* [a first link to follow](x)\n" * 20), "pairs_of_links"),
        (make("Say what the function does", "def f(x):\n    return x", "description"), "pairs_near_empty"),
    ],
)
def test_pairs_that_ask_nothing_in_particular_are_dropped(pair: Pair, reason: str):
    assert dropped(pair) == {reason: 1}


def test_queries_headings_and_answers_that_repeat_are_dropped():
    assert dropped(make("Same query", BODY), make("same  query!", BODY + "other")) == {
        "pairs_query_repeated": 2
    }
    assert dropped(make("One query", BODY), make("Two query", BODY.upper())) == {"pairs_answer_repeated": 1}
    synopses = [make(f"tool {name} > SYNOPSIS of it", BODY + name, file=name) for name in "abcd"]
    assert dropped(*synopses) == {"pairs_boilerplate": 4}
    assert dropped(*synopses[:3]) == {}


# --- what is held out -----------------------------------------------------------------------------------


def write(folder: Path, count: int) -> Path:
    for number in range(count):
        (folder / f"report{number}.md").write_text(page(number))
    return folder


def files_of(items: list[Chunk] | list[Pair]) -> set[str]:
    return {item.file for item in items}


def sentences_of(chunks: list[Chunk]) -> set[str]:
    return {word_key(text) for chunk in chunks for text in short_texts(chunk)}


def test_whole_files_are_held_out_and_pairs_come_from_them_alone(tmp_path: Path):
    folder = read_folder(write(tmp_path, 40))
    held_out = files_of(folder.held_out)
    assert 5 <= len(held_out) == folder.counts["files_held_out"] <= 8
    assert held_out.isdisjoint(files_of(folder.train))
    assert files_of(folder.pairs) <= held_out
    assert not set(map(word_key, folder.sentences)) & sentences_of(folder.held_out)
    documents = {pair.document for pair in folder.pairs}
    assert len(documents) == len(folder.pairs) > 20
    assert documents.isdisjoint(pair.document for pair in folder.train_pairs)
    assert files_of(folder.train_pairs).isdisjoint(held_out)
    assert len(folder.train_pairs) > 100
    assert folder.notices == [] or "held-out questions" in folder.notices[0]
    assert read_folder(tmp_path, seed=1).held_out != folder.held_out


def test_more_files_do_not_move_those_held_out_by_chance(tmp_path: Path):
    def cuts(count: int) -> list[Cut]:
        text = BODY * 10
        return [Cut(f"f{n}", [Chunk(text, f"f{n}", "", (), "prose", 0)], []) for n in range(count)]

    few, many = (held_out_from(cuts(count), 0.1, seed=3)[0] for count in (400, 700))
    assert {file for file in many if int(file[1:]) < 400} == set(few)
    assert 0.06 < len(many) / 700 < 0.14
    assert len(held_out_from(cuts(25), 0.1, seed=3)[0]) >= 5


def test_a_sample_of_the_files_is_held_out_as_much_as_all_of_them(tmp_path: Path):
    write(tmp_path, 240)
    folder = read_folder(tmp_path, max_files=60)
    assert folder.counts["files_over_limit"] == 180
    assert 5 <= folder.counts["files_held_out"] <= 15


def test_of_few_files_the_last_part_is_held_out(tmp_path: Path):
    for number in range(3):
        text = "\n\n".join(paragraph(number * 100 + n) for n in range(90))
        (tmp_path / f"book{number}.txt").write_text(text)
    folder = read_folder(tmp_path)
    assert folder.counts["files_held_out_in_part"] == 3
    assert any("the last part of 3" in notice for notice in folder.notices)
    for name in files_of(folder.held_out):
        last = max(chunk.start for chunk in folder.train if chunk.file == name)
        first = min(chunk.start for chunk in folder.held_out if chunk.file == name)
        assert last < first
        assert all(pair.start >= first for pair in folder.pairs if pair.file == name)
    share = sum(len(chunk.text) for chunk in folder.held_out) / folder.counts["characters"]
    assert 0.08 < share < 0.25
    assert {pair.kind for pair in folder.pairs} == {"cloze"}


def test_one_file_that_is_most_of_the_text_is_not_held_out_whole(tmp_path: Path):
    write(tmp_path, 30)
    for seed in range(2):
        (tmp_path / "book.md").write_text("\n".join(page(n, 9) for n in range(40, 80)))
        folder = read_folder(tmp_path, seed=seed)
        assert "book.md" in files_of(folder.train)
        assert folder.counts["files_held_out_in_part"] == 1


def test_copies_of_held_out_text_leave_the_training_text(tmp_path: Path):
    write(tmp_path, 40)
    before = read_folder(tmp_path)
    name = before.held_out[0].file
    copied = f"# A new beginning\n\n{sentence(7000, 7001)}\n\n" + (tmp_path / name).read_text()
    target = before.train[0].file
    (tmp_path / target).write_text(copied)  # cut at other places
    after = read_folder(tmp_path)
    assert target in {chunk.file for chunk in after.train + after.held_out}
    assert not sentences_of(after.held_out) & {word_key(text) for text in after.sentences}
    assert after.counts["chunks_near_held_out"] >= 1
    left = sum(len(chunk.text) for chunk in after.train if chunk.file == target)
    assert left < 0.5 * len(copied)
    assert after.counts["train_pairs_near_held_out"] >= 1
    queries = {word_key(pair.query) for pair in after.pairs}
    assert not queries & {word_key(pair.query) for pair in after.train_pairs}


def test_nothing_is_held_out_if_so_asked(tmp_path: Path):
    folder = read_folder(write(tmp_path, 30), hold_out=0.0)
    assert folder.held_out == folder.pairs == folder.train_pairs == []
    assert len(files_of(folder.train)) == 30


def test_source_code_asks_by_docstrings(tmp_path: Path):
    for number in range(30):
        code = [
            f'def {TOPICS[n]}_{number}(value, other):\n    """{sentence(number, n)[:-1]} in code."""\n'
            f"    for item in value.{TOPICS[n]}(other):\n        item.{TOPICS[n - 1]}(other, {number})\n"
            for n in range(9)
        ]
        (tmp_path / f"module{number}.py").write_text("\n\n".join(code))
    folder = read_folder(tmp_path, chunk_characters=500)
    assert {pair.kind for pair in folder.pairs} == {"description"}
    assert all('"""' not in pair.document for pair in folder.pairs)
    assert {chunk.kind for chunk in folder.train} == {"code"}
    asked = {pair.query for pair in folder.pairs}
    assert asked.isdisjoint(folder.sentences)
    assert len([text for text in folder.sentences if text.endswith("in code.")]) > 100
    for pair in folder.pairs:
        line = int(pair.place.removeprefix("line "))
        first = (tmp_path / pair.file).read_text().split("\n")[line - 1]
        assert first == pair.document.split("\n")[0]
