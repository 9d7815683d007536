"""Cutting documents: chunks, sentences, and the files that need a reader of their own."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedforge.documents.chunks import chunks
from embedforge.documents.document import Chunk, ParsedFile, Section
from embedforge.documents.find_files import PassedOver
from embedforge.documents.headings import prose_document
from embedforge.documents.html_text import html_document
from embedforge.documents.pdf_text import pdf_document
from embedforge.documents.sentences import SENTENCE_CHARACTERS, sentences
from embedforge.documents.source_code import COMMENTS, described_code


def cut(text: str, characters: int = 300, suffix: str = ".md") -> list[Chunk]:
    return chunks(prose_document(text, "a" + suffix, suffix), characters)


def visible(text: str) -> str:
    return "".join(text.split())


# --- chunks ---------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        "# One",
        "## Two",
        "Title\n=====",
        "word " * 30,
        "a sentence. " * 20,
        "```\ncode\n\nmore\n```",
        "~~~",
        "```",
        "",
        "* item\n* item",
        "x" * 700,
        "今日は天気がいい。" * 40,
        "\t\tdeep",
        "---",
        "<b>",
        "\u2028",
        "é" * 90,
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(PIECES, max_size=12),
    st.sampled_from(["\n", "\n\n", " "]),
    st.sampled_from([200, 450]),
    st.sampled_from([".md", ".rst", ".txt"]),
)
def test_no_text_is_lost_and_none_is_there_twice(pieces, separator, characters, suffix):
    text = separator.join(pieces)
    document = prose_document(text, "a" + suffix, suffix)
    found = chunks(document, characters)
    assert visible("".join(chunk.text for chunk in found)) == visible(document.text)
    if not text.startswith("---\n"):  # front matter
        assert visible(document.text) == visible(text)
    assert all(document.text[chunk.start :].startswith(chunk.text) for chunk in found)
    starts = [chunk.start for chunk in found]
    assert starts == sorted(set(starts))
    heading = max((section.body - section.start for section in document.sections), default=0)
    assert all(len(chunk.text) <= 1.25 * characters + heading for chunk in found)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["def f():", "    return 1", "", "}", "# note", "x" * 300, "\tif y:"]), max_size=60
    )
)
def test_no_code_is_lost(lines):
    text = "\n".join(lines)
    document = ParsedFile("a.py", text, "code", (Section((), 0, 0, len(text)),), first_line=1)
    assert visible("".join(chunk.text for chunk in chunks(document, 200))) == visible(text)


def test_chunks_are_cut_at_headings_then_paragraphs_and_know_their_place():
    body = "\n\n".join(f"Paragraph {n} says one thing. It says another thing as well." * 2 for n in range(4))
    text = f"# Guide\n\n{body}\n\n## Details\n\n{body}\n"
    found = cut(text)
    assert [chunk.headings for chunk in found] == [("Guide",)] * 2 + [("Guide", "Details")] * 2
    assert found[0].text.startswith("# Guide\n\nParagraph 0")
    assert found[2].text.startswith("## Details\n\nParagraph 0")
    lines = text.split("\n")
    for chunk in found:
        assert lines[int(chunk.place.removeprefix("line ")) - 1] == chunk.text.split("\n")[0]


def test_short_sections_under_one_heading_are_joined():
    short = "\n\n".join(f"## Part {n}\n\nA few words on part {n}." for n in range(6))
    (chunk,) = cut(f"# Guide\n\n{short}")
    assert chunk.headings == ("Guide",)
    assert cut(f"# Guide\n\n{short}\n\n# Other\n\nA few words.")[-1].headings == ("Other",)


def test_a_code_fence_stays_whole_where_it_fits():
    fence = "```\n" + "\n\n".join(f"line {n} of code" for n in range(12)) + "\n```"
    found = cut(f"{'Words before it. ' * 10}\n\n{fence}\n\n{'Words after it. ' * 10}")
    assert [fence in chunk.text for chunk in found].count(True) == 1
    long = "```\n" + "\n".join(f"line {n} of code" for n in range(100)) + "\n```"
    assert all(chunk.text.split("\n")[-1][:4] in {"line", "```"} for chunk in cut(long))


def test_one_giant_line_is_cut_at_sentences_then_words_then_anywhere():
    assert all(chunk.text.endswith("end.") for chunk in cut("Some words that come to an end. " * 200))
    assert all(chunk.text.startswith("word") and chunk.text.endswith("word") for chunk in cut("word " * 2000))
    assert [len(chunk.text) for chunk in cut("x" * 1000)] == [300, 300, 300, 100]
    assert all(chunk.text.endswith("。") for chunk in cut("今日は天気がいいから散歩しましょう。" * 100))


def test_code_is_cut_where_definitions_begin():
    functions = [f"def f{n}(x):\n    y = x + {n}\n\n    return y * {n}" for n in range(30)]
    text = "\n\n\n".join(functions)
    document = ParsedFile("a.py", text, "code", (Section((), 0, 0, len(text)),), first_line=1)
    assert all(chunk.text.startswith("def f") for chunk in chunks(document, 300))


# --- sentences ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It rained all day. We stayed at home.", ["It rained all day.", "We stayed at home."]),
        ("Dr. Smith met J. Doe at noon. They left, e.g. by train.", None),
        ("Version 2.5 is out now. see the notes below", ["Version 2.5 is out now. see the notes below"]),
        ("他今天早上去了学校。我们明天下午见面吧！", ["他今天早上去了学校。", "我们明天下午见面吧！"]),
        ("これは長い\n文章です。次の文章もあります。", ["これは長い文章です。", "次の文章もあります。"]),
        ("Why? Because it is so. Yes.", ["Why? Because it is so. Yes."]),
        (
            "## A heading of four words\nThe text goes on here.",
            ["A heading of four words", "The text goes on here."],
        ),
        (
            "Title of the page\n~~~~~~~~~~\n\nSome more words here.",
            ["Title of the page", "Some more words here."],
        ),
        (
            "- the *first* item here\n- the [second](x) item here",
            ["the first item here", "the second item here"],
        ),
        ("Use :func:`open <x.open>` for all files.", ["Use open for all files."]),
        ("```\nthis is code, not prose\n```\n| a | b |\n", []),
        ("Too short.", []),
        ("for (i = 0; i < n; ++i) { x[i] = y[i]; }", []),
    ],
)
def test_sentences(text: str, expected: list[str] | None):
    if expected is None:
        expected = ["Dr. Smith met J. Doe at noon.", "They left, e.g. by train."]
    assert sentences(text) == expected


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=600) | st.lists(PIECES, max_size=6).map("\n".join))
def test_sentences_are_short_lines(text):
    for found in sentences(text):
        assert 0 < len(found) <= SENTENCE_CHARACTERS
        assert found == " ".join(found.split())


# --- HTML -----------------------------------------------------------------------------------------------

HTML = """<!doctype html><html><head><meta charset="latin-1"><title>The page | Site</title>
<style>p { color: red }</style><script>var hidden = 1;</script></head><body>
<header>Site name</header><nav><ul><li>Home</li></ul></nav>
<article><header><h1>The caf\xe9</h1></header><p>First&nbsp;text with a <a href="x">link</a> and a_name.</p>
<h2>Menu\xb6</h2><pre><code># not a heading</code></pre><p>Second text.</p></article>
<aside>Advertisement</aside><footer>Copyright</footer><script>more()</script></body></html>"""


def test_html_is_its_article_without_furniture():
    document, dropped, guessed = html_document(HTML.encode("latin-1"), "a.html")
    assert [section.headings for section in document.sections if section.headings] == [
        ("The café",),
        ("The café", "Menu"),
    ]
    assert "First text with a link and a_name." in document.text
    assert "```\n# not a heading\n```" in document.text
    for word in ("hidden", "color", "Home", "Site", "Advertisement", "Copyright", "more()"):
        assert word not in document.text
    assert dropped == len("Site name") + len("Home") + len("Advertisement") + len("Copyright")
    assert not guessed
    assert {chunk.place for chunk in chunks(document, 300)} == {""}


def test_a_page_without_a_heading_has_its_title():
    document, _, _ = html_document(b"<title>My page</title><p>Words of it.</p>", "a.html")
    assert document.title == "My page"
    assert document.sections[0].headings == ("My page",)


def test_html_nested_too_deep_is_passed_over(tmp_path: Path):
    from embedforge.documents.readers import read_document

    (tmp_path / "a.html").write_text("<div>" * 5000 + "deep" + "</div>" * 5000)
    with pytest.raises(PassedOver, match="files_not_parsed"):
        read_document(tmp_path, "a.html", 1_000_000, Counter())


# --- PDF ------------------------------------------------------------------------------------------------


def pdf_bytes(pages: list[list[str]]) -> bytes:
    """A PDF with these lines on its pages, in Helvetica."""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    kids = []
    for lines in pages:
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET"
        kids.append(len(objects) + 1)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects) + 2} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] >>"
    out = io.BytesIO(b"")
    out.write(b"%PDF-1.4\n")
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(out.tell())
        out.write(f"{number} 0 obj\n{content}\nendobj\n".encode())
    start = out.tell()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode())
    out.write(f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode())
    return out.getvalue()


def test_a_pdf_is_its_pages_without_running_lines():
    names = ["alpha", "beta", "gamma", "delta"]
    pages = [
        [
            "The Journal of Tests",
            f"On page {name} we find an exam-",
            f"ple of {name} words.",
            f"Page {number} of 4",
        ]
        for number, name in enumerate(names, start=1)
    ]
    document, dropped = pdf_document(pdf_bytes(pages), "a.pdf")
    assert document.text == "\n\n".join(
        f"On page {name} we find an example of {name} words." for name in names
    )
    assert dropped == 4 * len("The Journal of Tests" + "Page 1 of 4")
    assert [chunk.place for chunk in chunks(document, 50)] == [f"page {n}" for n in range(1, 5)]


def test_pdfs_without_text_are_told_from_broken_and_locked_ones():
    import pypdf

    with pytest.raises(PassedOver, match="files_scanned"):
        pdf_document(pdf_bytes([[], []]), "a.pdf")
    with pytest.raises(PassedOver, match="files_not_parsed"):
        pdf_document(b"%PDF-1.4 not really", "a.pdf")
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf_bytes([["Secret words."]])))
    writer.encrypt("password", algorithm="RC4-128")
    locked = io.BytesIO()
    writer.write(locked)
    with pytest.raises(PassedOver, match="files_encrypted"):
        pdf_document(locked.getvalue(), "a.pdf")


# --- other languages ------------------------------------------------------------------------------------

JAVA = """// Copyright someone

/**
 * Keeps the <b>orders</b> that wait to be shipped.
 * @since 1.0
 */
public class Orders {
    // Adds an order at the end of the queue.
    // It may be there already.
    void add(Order order)
    {
        queue.add(order);
        if (full) {

            flush();
        }
    }

    // unrelated remark without anything below it

    int size() { return 0; }
}
"""


@pytest.mark.parametrize(
    ("suffix", "code", "expected"),
    [
        (".java", JAVA, [("Keeps the <b>orders</b> that wait to be shipped.", "public class", "}")]),
        (".go", "// Open opens the named file.\nfunc Open(a string) {\n\treturn\n}\n\nvar x = 1\n", 3),
        (".rb", "# Greets the person by name.\ndef greet(name)\n  puts name\n  name\nend\nputs 1\n", 4),
        (
            ".sql",
            "-- All people who bought something.\nCREATE TABLE a (\n  id int,\n  b int\n);\nSELECT 1;",
            4,
        ),
        (".js", "// Only a remark on imports here\nimport a from 'b'\nimport c\nimport d\n", []),
    ],
)
def test_a_comment_describes_the_definition_below(suffix, code, expected):
    found = described_code(code, COMMENTS[suffix])
    if isinstance(expected, int):
        (only,) = found
        assert only.code.split("\n") == code.split("\n")[1 : 1 + expected]
        assert only.line == 2
    else:
        assert [item.description for item in found[: len(expected)]] == [item[0] for item in expected]
    if suffix == ".java":
        assert found[1].description == "Adds an order at the end of the queue. It may be there already."
        assert found[1].code.startswith("void add(Order order)\n{\n    queue.add(order);")
        assert found[1].code.endswith("    }\n}")
        assert len(found) == 2
