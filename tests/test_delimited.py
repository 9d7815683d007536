"""CSV and TSV files to Records: what a quote is, what a list is, and every way in which a row can be bad."""

from __future__ import annotations

import gzip

import pytest

from embedforge.data.readers import read_records
from embedforge.errors import EmbedforgeError
from readers_for_tests import examples_of, fails, write_jsonl


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_csv(tmp_path, name):
    lines = [["query", "positive", "negative"], ["a, b", 'says ""so""', "two\nlines"], ["c", "d", ""]]
    text = "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines) + "\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    records = list(read_records(path))
    assert records[0].values == {"query": "a, b", "positive": 'says "so"', "negative": "two\nlines"}
    assert records[1].values["negative"] is None
    assert records[1].number == 4  # the first record takes lines 2 and 3
    examples = examples_of(path)
    assert examples[0].negatives == ("two\nlines",)
    assert examples[1].negatives == ()


@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
def test_tsv_is_read_without_quotes(tmp_path, name):
    """A stray quote used to take the rows up to the next one into its cell, without a word."""
    text = 'query\tpositive\n"5 inch disk\tthe old one\r\n\nthe "raven"\tpoe\n"raven"\t5" wide"\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert [(e.query, *e.positives) for e in examples_of(path)] == [
        ('"5 inch disk', "the old one"),
        ('the "raven"', "poe"),
        ('"raven"', '5" wide"'),
    ]
    assert [record.number for record in read_records(path)] == [2, 4, 5]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('"query"\t"positive"\n"a"\t"b"\n', ("line 1", "quoted as in CSV files", "save the file as .csv")),
        ('query\tpositive\na\t"says ""so"""\n', ("line 2", "quoted as in CSV files")),
        (
            'query\tpositive\na\t"two\nlines"\n',
            ("line 3", "1 cells under 2 columns", "holds a tab or a line end"),
        ),
        ('query\tpositive\na\t"b\tc"\n', ("line 2", "3 cells under 2 columns")),
    ],
)
def test_a_quoted_tsv_is_refused(tmp_path, text, parts):
    (tmp_path / "rows.tsv").write_text(text)
    fails(tmp_path / "rows.tsv", *parts)


@pytest.mark.parametrize(
    ("cell", "positives"),
    [
        ('["b", "c, d"]', ("b", "c, d")),
        ('[{"title": "T", "text": "b"}]', ("T b",)),
        ('{"text": "b"}', ("b",)),
        ("[sic] a text", ("[sic] a text",)),
        ("[1] Smith [2]", ("[1] Smith [2]",)),
        ('{"code": 1}', ('{"code": 1}',)),
        (r"[^'\d]", (r"[^'\d]",)),
        ("(1, 2)", ("(1, 2)",)),
        ('("Yes", he said)', ('("Yes", he said)',)),
    ],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_a_cell_that_is_a_json_list_is_a_list(tmp_path, name, cell, positives):
    quoted = '"' + cell.replace('"', '""') + '"' if name.endswith(".csv") else cell
    separator = "," if name.endswith(".csv") else "\t"
    (tmp_path / name).write_text(f"query{separator}positives\na{separator}{quoted}\n")
    (example,) = examples_of(tmp_path / name)
    assert example.positives == positives


@pytest.mark.parametrize(
    "cell",
    [
        *("['b', 'c']", "['b' 'c\nd']", "[\"it's\", 'b']", "{'text': 'b'}", '["b" "c"]', "['b\\\\d']"),
        *("('b', 'c')", "{'b', 'c'}", "array(['b', 'c'], dtype=object)"),
    ],
)
def test_a_cell_that_is_a_list_of_python_or_numpy_is_refused(tmp_path, cell):
    quoted = cell.replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'query,negative_1,positive\na,c,"{quoted}"\n')
    fails(tmp_path / "rows.csv", "'positive' is a list as Python or NumPy prints it", ".map(json.dumps)")


@pytest.mark.parametrize("text", ["['b', 'c']", '["b", "c"]'])
def test_the_text_of_a_list_in_another_format_is_refused_too(tmp_path, text):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"query": "a", "positives": text}])
    fails(path, "line 1", "'positives' is the text of a list", "as the one item of a list")
    write_jsonl(path, [{"query": "a", "positives": [text], "negative": text}])
    assert examples_of(path)[0].positives == examples_of(path)[0].negatives == (text,)


def test_a_number_with_underscores_is_none(tmp_path):
    (tmp_path / "rows.csv").write_text("score\n1_0\n")
    (record,) = read_records(tmp_path / "rows.csv")
    with pytest.raises(EmbedforgeError, match="'score' must be a number, found '1_0'"):
        record.number_of("score")


def test_csv_reads_a_very_long_cell(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,positive\na," + "x" * 200_000 + "\n")
    assert len(examples_of(path)[0].positives[0]) == 200_000


def test_csv_with_missing_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,positve\na,b\n")
    fails(path, "line 2", "unknown key 'positve'", "Did you mean 'positive'?")
    path.write_text("query,negative\na,b\n")
    fails(path, "line 2", "there is no 'positives'", "query, negative")


@pytest.mark.parametrize("row", ["a", "a,b,c", 'a,"b'])
def test_csv_with_a_bad_row(tmp_path, row):
    path = tmp_path / "rows.csv"
    path.write_text(f"query,positive\nx,y\n{row}\n")
    fails(path, "line 3")


def test_csv_with_a_repeated_column(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,query\na,b\n")
    fails(path, "line 1", "repeats ['query']")
