"""Parts of a file: cut once, and each read as it is in the whole."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from embedforge.data.ranges import RangeReader, cut
from embedforge.data.readers import read_records
from embedforge.errors import EmbedforgeError

VALUES = [{"id": str(n), "text": f'text {n}, "Zürich"\n日本' if n % 3 else f"text {n}"} for n in range(11)]


def write(path: Path) -> Path:
    """Write the values in the format of the ending; JSONL with blank lines, CSV with line ends in cells."""
    if path.name.endswith(".parquet"):
        pa = pytest.importorskip("pyarrow")

        pa.parquet.write_table(pa.Table.from_pylist(VALUES), path, row_group_size=4)
        return path
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    with plain.open("w", encoding="utf-8", newline="") as file:
        if plain.suffix == ".tsv":  # unquoted: a cell holds no line end
            cells = ((str(value["id"]), " ".join(str(value["text"]).split())) for value in VALUES)
            file.writelines("\t".join(row) + "\n" for row in [("id", "text"), *cells])
        elif plain.suffix == ".csv":
            rows = csv.DictWriter(file, ["id", "text"])
            rows.writeheader()
            rows.writerows(VALUES)
        elif plain.suffix == ".txt":
            file.writelines(f"  line {n}\n\n" for n in range(11))
        else:
            file.write("\ufeff")
            file.writelines(json.dumps(value, ensure_ascii=False) + "\n \n" for value in VALUES)
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


@pytest.mark.parametrize("rows", [1, 4, 5, 100])
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "txt", "parquet"])
def test_ranges_in_any_order_are_the_whole_file(ending: str, rows: int, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows.{ending}")
    whole = list(read_records(path))
    assert len(whole) == 11
    ranges = cut(path, rows)
    assert [part.rows for part in ranges[:-1]] == [rows] * (len(ranges) - 1)
    with RangeReader(path) as reader:
        backwards = {part: list(reader.read(part)) for part in reversed(ranges)}
    assert [record for part in ranges for record in backwards[part]] == whole


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet")
    with RangeReader(path, ["text"]) as reader:
        assert {tuple(record.values) for part in cut(path, 5) for record in reader.read(part)} == {("text",)}


def test_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    *_, last = cut(path, 5)
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:4]), encoding="utf-8")
    with (
        RangeReader(path) as reader,
        pytest.raises(EmbedforgeError, match=r"0 records where 1 were.*changed"),
    ):
        list(reader.read(last))


def test_every_record_of_a_text_file_is_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv")
    seen: list[str] = []
    cut(path, 3, lambda record: seen.append(record.values["id"]))
    assert seen == [value["id"] for value in VALUES]
