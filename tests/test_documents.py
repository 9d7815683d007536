"""Folders of a user's own files: reading every kind, and the limits and errors of `read_folder`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from documents_for_tests import page, paragraph
from embedforge.documents import read_folder
from embedforge.documents import readers as readers_module
from embedforge.documents.document import ParsedFile
from embedforge.documents.find_files import PassedOver
from embedforge.documents.readers import read_document, suffix_of
from embedforge.errors import EmbedforgeError


def read(folder: Path, name: str, content: str | bytes) -> ParsedFile:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_document(folder, name, 1_000_000, Counter())


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    for number in range(30):
        (tmp_path / f"report{number}.md").write_text(page(number))
    return tmp_path


# --- what is read, and what passed over ---------------------------------------------------------------


def test_a_folder_of_many_kinds_is_read_and_the_rest_counted(reports: Path) -> None:
    (reports / "notes.txt").write_bytes(paragraph(900).encode("utf-16"))
    (reports / "old.txt").write_bytes(("Café. " + paragraph(901)).encode("cp1252"))
    (reports / "page.html").write_text(f"<html><body><h1>Web</h1><p>{paragraph(902)}</p></body></html>")
    (reports / "tool.py").write_text(
        'def area(side):\n    """Return the area of a square."""\n    return side * side\n'
    )
    (reports / "empty.md").write_text(" \n")
    (reports / "binary.txt").write_bytes(b"\x00\x01\x02" * 100)
    (reports / "noise.txt").write_bytes(bytes(range(1, 32)) * 100)
    (reports / "cyrillic.txt").write_bytes(("Совсем другая кодировка. " * 20).encode("koi8-r"))
    (reports / "bundle.js").write_text("var a=1;" * 1000)
    (reports / "table.csv").write_text("a,b\n")
    (reports / "LICENSE.txt").write_text(paragraph(903))
    (reports / "large.txt").write_text(paragraph(904) * 300)
    (reports / "gone.md").symlink_to(reports / "nowhere.md")
    (reports / "loop").symlink_to(reports)
    (reports / ".hidden").mkdir()
    (reports / ".hidden" / "a.md").write_text(paragraph(905))
    os.mkfifo(reports / "pipe.txt")
    seen = []
    counts = read_folder(reports, max_bytes=100_000, progress=lambda *step: seen.append(step)).counts
    assert {name: count for name, count in counts.items() if name.startswith("files_") and count} == {
        "files_found": 44,
        "files_of_other_kind": 1,
        "files_boilerplate": 1,
        "files_text": 39,
        "files_html": 1,
        "files_code": 2,
        "files_encoding_guessed": 1,
        "files_empty": 1,
        "files_binary": 2,
        "files_encoding_unknown": 1,
        "files_generated": 1,
        "files_too_large": 1,
        "files_not_readable": 2,
        "files_held_out": 5,
    }
    assert seen == [(done, len(seen)) for done in range(1, len(seen) + 1)]
    assert counts["folders_excluded"] == 1, "the hidden one; the link is not followed"


def test_a_file_that_vanishes_while_reading_is_counted(reports: Path) -> None:
    def remove(done: int, total: int) -> None:
        if done == 1:
            for path in sorted(reports.iterdir())[:3]:
                path.unlink()

    counts = read_folder(reports, progress=remove).counts
    assert counts["files_not_readable"] in {2, 3}


def test_limits_draw_a_sample_that_the_seed_decides(reports: Path) -> None:
    folder = read_folder(reports, max_files=20)
    assert folder.counts["files_over_limit"] == 10
    assert folder == read_folder(reports, max_files=20)
    half = read_folder(reports, max_characters=folder.counts["characters"], chunks_needed=1)
    assert 0 < half.counts["files_over_limit"] <= 11


def test_the_result_does_not_depend_on_anything_but_the_files(reports: Path) -> None:
    before = read_folder(reports)
    paths = sorted(reports.iterdir(), reverse=True)
    contents = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    for path in paths:
        path.write_bytes(contents[path])
    assert read_folder(reports) == before
    assert [(chunk.file, chunk.start) for chunk in before.train] == sorted(
        (chunk.file, chunk.start) for chunk in before.train
    )


def test_names_that_are_not_text_are_read(reports: Path) -> None:
    Path(os.fsdecode(bytes(reports) + b"/b\xff.md")).write_text(page(31))
    files = {chunk.file for chunk in read_folder(reports, hold_out=0.0).train}
    assert "b\ufffd.md" in files


# --- errors ---------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    with pytest.raises(EmbedforgeError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "a.docx").write_bytes(b"x")
    (tmp_path / "b.docx").write_bytes(b"x")
    with pytest.raises(EmbedforgeError, match="this is a file"):
        read_folder(tmp_path / "a.docx")
    with pytest.raises(EmbedforgeError, match=r"nothing to read\. Found: \.docx 2\. What is read: \.txt"):
        read_folder(tmp_path)
    (tmp_path / "a.md").write_text(page(1))
    with pytest.raises(
        EmbedforgeError, match=r"too little text: [\d,]+ characters give \d+ chunks .* at least 50"
    ):
        read_folder(tmp_path)
    with pytest.raises(EmbedforgeError, match="chunk_characters must be at least"):
        read_folder(tmp_path, chunk_characters=10)
    with pytest.raises(EmbedforgeError, match="hold_out in"):
        read_folder(tmp_path, hold_out=0.9)


def test_a_missing_extra_is_a_notice_or_an_error_where_nothing_else_is(
    reports: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "find_spec", lambda name: None)
    (reports / "a.html").write_text("<p>words</p>")
    (reports / "b.pdf").write_bytes(b"%PDF")
    folder = read_folder(reports)
    assert folder.counts["files_without_reader"] == 2
    assert [notice for notice in folder.notices if "pip install 'embedforge[documents]'" in notice]
    alone = tmp_path_factory.mktemp("alone")
    (alone / "a.html").write_text("<p>words</p>")
    with pytest.raises(EmbedforgeError, match=r"embedforge\[documents\]"):
        read_folder(alone)


# --- encodings, line ends, suffixes --------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"])
def test_line_ends_do_not_matter(tmp_path: Path, newline: str) -> None:
    document = read(tmp_path, "a.md", "# One\n\ntext\n\n## Two\n\nmore".replace("\n", newline))
    assert [section.headings for section in document.sections] == [(), ("One",), ("One", "Two")]
    assert document.text.split("\n")[4] == "## Two"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings_that_can_be_told_are_read(tmp_path: Path, encoding: str) -> None:
    text = "Der Fluß fließt über die Brücke, und alles ist gut."
    assert read(tmp_path, "a.txt", text.encode(encoding)).text == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "files_empty"), (b"abc\x00def", "files_binary"), (b"\n\n\n", "files_empty")],
)
def test_files_without_text_are_passed_over(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(PassedOver, match=reason):
        read(tmp_path, "a.txt", content)


def test_suffixes_decide_the_reader() -> None:
    names = ["a.MD", "b.rst.txt", "c.tar.gz", "d", "e.Htm", "f.rs"]
    assert [suffix_of(name) for name in names] == [".md", ".rst", "", "", ".htm", ".rs"]
