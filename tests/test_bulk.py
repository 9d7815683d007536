"""`embedforge encode`: every row once and exact, whatever the format, the shards, and what was killed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Run
from disk_for_tests import disk_with_room_for
from embedforge.bulk import EncodeSettings, encode_files
from embedforge.bulk.encoder import Encoder
from embedforge.bulk.manifest import LOCKS
from embedforge.bulk.rows import CHARACTERS_PER_WINDOW, ROWS_PER_WINDOW, Row, windows
from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.files import try_lock
from embedforge.model.encoder import EmbeddingModel, embedding_model, load
from embedforge.quantize import cut_dimensions, quantize

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = [f"text {n}, " + "and more " * (n % 5) for n in range(10)]
ROWS = [{"id": f"d{n}", "title": "", "text": text, "url": n} for n, text in enumerate(TEXTS)]
THREE = EncodeSettings(rows_per_shard=3, id="id")


@pytest.fixture(scope="module")
def model(model_folder: Path) -> EmbeddingModel:
    return embedding_model(load(model_folder, device="cpu"))


@pytest.fixture(scope="module")
def wanted(model: EmbeddingModel) -> np.ndarray:
    """What `encode` gives for the texts."""
    return encode(model, TEXTS)


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture(autouse=True)
def _one_model(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load each model once: half a second for each test otherwise."""
    cache: dict[str, Any] = LOADED
    monkeypatch.setattr(
        sys.modules["embedforge.bulk.encoder"],
        "load",
        lambda name, **options: cache.setdefault(str(name), load(name, **options)),
    )


LOADED: dict[str, Any] = {}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(out: Path) -> dict[str, list[Any]]:
    return pq.read_table(out / "vectors").to_pydict()


def files(out: Path) -> list[Path]:
    return sorted((out / "vectors").iterdir())


# --- what goes in -------------------------------------------------------------------------------------


def write(path: Path) -> Path:
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=4)
    elif kind == "txt":
        path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(ROWS[0]), delimiter="," if kind == "csv" else "\t")
            table.writeheader()
            table.writerows(ROWS)
    else:
        write_jsonl(path, ROWS)
        if kind.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "tsv", "txt", "parquet"])
def test_each_format_gives_the_vectors_of_its_texts(
    kind: str, model_folder: Path, wanted: np.ndarray, tmp_path: Path
) -> None:
    settings = EncodeSettings(rows_per_shard=3, id=None if kind == "txt" else "id")
    path = write(tmp_path / f"rows.{kind}")
    if kind == "txt":
        wanted = encode(embedding_model(load(model_folder, device="cpu")), [text.strip() for text in TEXTS])
    done = encode_files(path, tmp_path / "out", model=str(model_folder), settings=settings)
    assert (done.rows, done.written, done.shards, done.missing) == (10, 10, 4, 0)
    table = read(tmp_path / "out")
    assert table["row"] == list(range(10))
    assert kind == "txt" or table["id"] == [row["id"] for row in ROWS]
    np.testing.assert_allclose(table["vector"], wanted, atol=1e-5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", "done.json", "vectors"}


def test_standard_input_and_several_files_are_one_input(
    model_folder: Path, wanted: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"
    for path in (first, second):  # the same name and content: rows of both are wanted
        path.parent.mkdir()
        write_jsonl(path, ROWS)
    piped = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    for _ in range(2):  # piped again, it goes on with what is there
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(piped)))
        done = encode_files(
            [first.parent, second, "-"], tmp_path / "out", model=str(model_folder), settings=THREE
        )
    assert done.written == 0
    table = read(tmp_path / "out")
    assert table["id"] == [row["id"] for row in ROWS] * 3
    assert table["row"] == list(range(30))
    np.testing.assert_allclose(table["vector"], np.tile(wanted, (3, 1)), atol=1e-5)


def test_columns_instructions_and_what_is_kept(
    model_folder: Path, model: EmbeddingModel, tmp_path: Path
) -> None:
    rows = [
        {"t": "A title", "body": "and a body", "i": "Find it", "n": 7},
        {"t": "", "body": "alone", "i": "", "n": [1, "ü"]},
        {"t": None, "body": "again", "i": "Find it", "n": None},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    texts = ["A title and a body", "alone", "again"]
    contract = model.contract
    kinds: list[tuple[dict[str, Any], list[str]]] = [
        ({}, [contract.document_prefix()] * 3),
        ({"query": True}, [contract.query_prefix()] * 3),
        ({"instruction": "Find"}, [contract.query_prefix("Find")] * 3),
        ({"instruction_column": "i"}, [contract.query_prefix(row["i"]) for row in rows]),
    ]
    for number, (options, prefixes) in enumerate(kinds):
        settings = EncodeSettings(column=("t", "body"), keep=("n", "body"), **options)
        encode_files(path, tmp_path / f"out{number}", model=str(model_folder), settings=settings)
        table = read(tmp_path / f"out{number}")
        each = [encode(model, [text], prefix)[0] for text, prefix in zip(texts, prefixes, strict=True)]
        np.testing.assert_allclose(table["vector"], each, atol=1e-5)
        assert table["n"] == ["7", '[1, "ü"]', None]
        assert table["body"] == [row["body"] for row in rows]


def test_whole_numbers_stay_numbers_and_other_ids_are_named(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    encode_files(path, tmp_path / "out", model=str(model_folder), settings=THREE)
    assert read(tmp_path / "out")["id"] == list(range(10))
    write_jsonl(path, [*rows, {"id": "x", "text": "a"}])
    with pytest.raises(EmbedforgeError, match=r"rows.jsonl, line 11: 'id' must be a whole number.*'x'"):
        encode_files(path, tmp_path / "other", model=str(model_folder), settings=THREE)


# --- what comes out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("output", ["parquet", "npy", "arrow"])
def test_each_output_holds_the_same_numbers(
    output: Any, precision: Any, model_folder: Path, wanted: np.ndarray, jsonl: Path, tmp_path: Path
) -> None:
    settings = EncodeSettings(id="id", dim=16, rows_per_shard=4, format=output, precision=precision)
    encode_files(jsonl, tmp_path / "out", model=str(model_folder), settings=settings)
    expected, scale = quantize(cut_dimensions(wanted, 16), precision)
    if output == "npy":
        numbers = np.concatenate([np.load(path) for path in files(tmp_path / "out") if path.suffix == ".npy"])
        beside = [path for path in files(tmp_path / "out") if path.suffix == ".jsonl"]
        rows = [json.loads(line) for path in beside for line in path.read_text().splitlines()]
    else:
        read_one = pq.read_table if output == "parquet" else lambda path: pa.ipc.open_file(path).read_all()
        table = pa.concat_tables([read_one(path) for path in files(tmp_path / "out")])
        vectors = table["vector"].combine_chunks()
        numbers = vectors.flatten().to_numpy(zero_copy_only=False).reshape(10, -1)
        rows = table.drop_columns("vector").to_pylist()
    assert numbers.dtype == expected.dtype
    assert numbers.shape == expected.shape
    if precision == "binary":
        assert np.unpackbits(numbers ^ expected).mean() < 0.02  # a number that rounds to either side of 0
    else:
        np.testing.assert_allclose(
            numbers.astype(float), expected.astype(float), atol=1.1 if scale is not None else 1e-3
        )
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    if scale is not None:
        np.testing.assert_allclose([row["scale"] for row in rows], scale, rtol=1e-4)


def test_cut_vectors_are_of_unit_length_and_int8_ranks_as_float32_does() -> None:
    vectors = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    short = cut_dimensions(vectors, 32)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    numbers, scale = quantize(short, "int8")
    assert scale is not None
    back = numbers * scale[:, None]
    assert (np.einsum("ij,ij->i", back, short) / np.linalg.norm(back, axis=1)).min() > 0.9998
    with pytest.raises(EmbedforgeError, match="--dim 65: the model's vectors have 64"):
        cut_dimensions(vectors, 65)
    with pytest.raises(EmbedforgeError, match="cut them with --dim 24"):
        quantize(short[:, :30], "binary")


# --- stopped, killed, side by side ----------------------------------------------------------------------


class Counting:
    """Counts rows that were embedded, and stops at one."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.rows: list[int] = []
        self.stop_at = stop_at

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Encoder.__call__

        def call(encoder: Encoder, rows: list[Row]) -> Any:
            if self.stop_at is not None and len(self.rows) >= self.stop_at:
                raise KeyboardInterrupt
            self.rows += [row.number for row in rows]
            return original(encoder, rows)

        monkeypatch.setattr(Encoder, "__call__", call)


def test_a_second_start_does_only_what_is_missing(
    model_folder: Path, wanted: np.ndarray, jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(stop_at=6)
    counting.patch(monkeypatch)
    options: dict[str, Any] = {"model": str(model_folder), "settings": THREE}
    with pytest.raises(KeyboardInterrupt):
        encode_files(jsonl, tmp_path / "out", **options)
    assert len(files(tmp_path / "out")) == 2  # and no half one, nor a temporary name
    counting.stop_at = None
    done = encode_files(jsonl, tmp_path / "out", **options)
    assert (done.written, counting.rows) == (4, list(range(10)))
    np.testing.assert_allclose(read(tmp_path / "out")["vector"], wanted, atol=1e-5)
    copy = tmp_path / "copy.jsonl"  # the same content elsewhere, as on another machine
    copy.write_bytes(jsonl.read_bytes())
    os.utime(copy, (1, 1))
    assert encode_files(copy, tmp_path / "out", **options).written == 0


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has used torch")
def test_a_killed_process_leaves_whole_files_and_no_lock(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"id": n, "text": f"{n} " + "word " * 20} for n in range(600)]
    path, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    options: dict[str, Any] = {
        "model": str(model_folder),
        "settings": EncodeSettings(id="id", rows_per_shard=10),
    }
    if (process := os.fork()) == 0:
        torch.set_num_threads(1)  # those of the parent are not there
        encode_files(path, out, **options)
        os._exit(0)
    while len(list(out.glob("vectors/*.parquet"))) < 2:
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    times = {path: path.stat().st_mtime_ns for path in out.glob("vectors/*.parquet")}
    assert 2 <= len(times) < 60
    done = encode_files(path, out, **options)
    assert done.written == 600 - 10 * len(times)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert read(out)["id"] == list(range(600))
    assert len(files(out)) == 60


def test_a_shard_that_another_process_holds_is_left_to_it(
    model_folder: Path, jsonl: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"model": str(model_folder), "settings": THREE}
    encode_files(jsonl, out, shard=(1, 4), **options)
    held = files(out)[0]
    held.unlink()
    with try_lock(out / LOCKS / held.stem) as mine:
        assert mine
        done = encode_files(jsonl, out, **options)
    assert (done.written, done.missing) == (7, 1)
    assert not (out / "done.json").exists()
    assert encode_files(jsonl, out, **options).written == 3
    assert json.loads((out / "done.json").read_text())["rows"] == 10


def test_parts_are_disjoint_and_the_last_one_counts(model_folder: Path, jsonl: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": str(model_folder), "settings": THREE}
    parts = [encode_files(jsonl, tmp_path / "out", shard=(k, 3), **options) for k in (3, 1, 2)]
    assert sum(part.written for part in parts) == 10
    assert [part.missing for part in parts] == [2, 1, 0]
    with pytest.raises(EmbedforgeError, match="the parts of 3 are 1/3 to 3/3"):
        encode_files(jsonl, tmp_path / "out", shard=(4, 3), **options)


# --- what is refused --------------------------------------------------------------------------------------


def test_another_input_model_or_setting_is_refused(
    model_folder: Path, saved_latent: Path, jsonl: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode_files(jsonl, out, model=str(model_folder), settings=THREE)
    with pytest.raises(EmbedforgeError, match=r"vectors there are of another model, .*contract .*choose"):
        encode_files(jsonl, out, model=str(saved_latent), settings=THREE)
    with pytest.raises(EmbedforgeError, match="the run there is another one, id was 'id', is None"):
        encode_files(jsonl, out, model=str(model_folder), settings=EncodeSettings(rows_per_shard=3))
    with pytest.raises(EmbedforgeError, match="1 input files, now there are 2"):
        encode_files([jsonl, jsonl], out, model=str(model_folder), settings=THREE)
    write_jsonl(jsonl, [*ROWS[:-1], {**ROWS[-1], "text": "another"}])
    with pytest.raises(EmbedforgeError, match="changed since this run began"):
        encode_files(jsonl, out, model=str(model_folder), settings=THREE)


def test_a_damaged_file_is_found_when_rows_are_counted(
    model_folder: Path, jsonl: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode_files(jsonl, out, model=str(model_folder), settings=THREE)
    first, second, *_ = files(out)
    for content, message in ((second.read_bytes(), "3 rows"), (b"PAR1", "damaged")):
        if message == "damaged":
            first.write_bytes(content)
            with pytest.raises(EmbedforgeError, match=f"{first.name}: the file is damaged.*delete it"):
                encode_files(jsonl, out, model=str(model_folder), settings=THREE)
    table = pq.read_table(second)
    pq.write_table(table.slice(0, 2), first)
    with pytest.raises(EmbedforgeError, match="it holds 2 rows where 3 should be; delete it"):
        encode_files(jsonl, out, model=str(model_folder), settings=THREE)


def test_a_full_disk_is_named_and_finished_shards_stay(
    model_folder: Path, jsonl: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {
        "model": str(model_folder),
        "settings": EncodeSettings(rows_per_shard=3, keep=("text",)),
    }
    write_jsonl(jsonl, [*ROWS[:6], {"text": "".join(map(str, range(3000)))}, *ROWS[6:]])
    with disk_with_room_for(6000), pytest.raises(EmbedforgeError, match=r"could not be written.*run again"):
        encode_files(jsonl, out, **options)
    assert len(files(out)) == 2
    assert encode_files(jsonl, out, **options).written == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{rows}", "--column", "txt"], "line 1: there is no 'txt'"),
        (["{model}", "{rows}", "--id", "idd"], "Did you mean 'id'?"),
        (["{model}", "{rows}x"], "there is no such file"),
        (["{model}", "{folder}/empty"], "no file to read in this folder"),
        (["{model}x", "{rows}"], "there is no such folder"),
        (["{model}", "{rows}", "--precision", "int4"], "--precision int4: there is float32"),
        (["{model}", "{rows}", "--format", "parket"], "Did you mean 'parquet'?"),
        (["{model}", "{rows}", "--engine", "spark"], "there is local and ray"),
        (["{model}", "{rows}", "--workers", "2"], "are for --engine ray"),
        (["{model}", "{rows}", "--shard", "3"], "write 3/16"),
        (["{model}", "{rows}", "--keep", "row"], "a column of that name is written anyway"),
        (["{model}", "{rows}", "--dim", "12", "--precision", "binary"], "a multiple of 8"),
        (["{model}", "{rows}", "--instruction", "a", "--instruction-column", "b"], "name one"),
        (["{model}", "{rows}", "--out", "{folder}"], "not empty and no encode run"),
        (["{model}", "{rows}", "--out", "{rows}"], "this is a file"),
        (["{model}", "{rows}", "--shard", "1/2", "--engine", "ray"], "Ray does all parts"),
        (["{model}", "{rows}", "--stdin-format", "csv"], "the input is not standard input"),
        (["{model}", "{rows}", "--dim", "400"], "--dim 400: the model's vectors have 32"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str], message: str, run: Run, model_folder: Path, jsonl: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    given = [text.format(model=model_folder, rows=jsonl, folder=tmp_path) for text in arguments]
    out = [] if "--out" in given else ["--out", tmp_path / "out"]
    code, _, errors = run("encode", *given, *out)
    assert code == 1
    assert message in errors
    assert not list(tmp_path.glob("out/vectors/*"))


def test_texts_without_words_are_embedded_and_counted(
    run: Run, model_folder: Path, model: EmbeddingModel, tmp_path: Path
) -> None:
    rows = [ROWS[0], {"text": " "}, {"text": None}, {"text": ""}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    code, output, _ = run("encode", model_folder, path, "--out", tmp_path / "out")
    assert code == 0
    assert "3 of them have no word, and the empty text's vector" in " ".join(output.split())
    assert "4 rows in 1 files, all counted" in output
    np.testing.assert_allclose(
        read(tmp_path / "out")["vector"][1:], np.tile(encode(model, [""]), (3, 1)), atol=1e-5
    )


def test_the_command_without_a_model_takes_the_one_that_comes_along(
    run: Run, model_folder: Path, jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedforge.model.folder.DEFAULT_MODEL", str(model_folder))
    code, output, _ = run("encode", jsonl, jsonl, "--out", tmp_path / "out")
    assert code == 0
    assert "20 rows embedded" in output


# --- models without a contract, and Ray -------------------------------------------------------------------


def test_a_model_of_sentence_transformers_keeps_its_prompts(tmp_path: Path, jsonl: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[UNK]", "query", "passage", "text", "and", "more", *map(str, range(10))]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    numbers = np.random.default_rng(0).standard_normal((len(words), 8)).astype(np.float32)
    st = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=numbers)],
        prompts={"query": "query ", "document": "passage "},
        device="cpu",
    )
    st.save(str(tmp_path / "st"))
    encode_files(jsonl, tmp_path / "out", model=str(tmp_path / "st"), settings=THREE, device="cpu")
    np.testing.assert_allclose(read(tmp_path / "out")["vector"], st.encode_document(TEXTS), atol=1e-5)
    with pytest.raises(EmbedforgeError, match="no template to put an instruction into"):
        encode_files(
            jsonl, tmp_path / "b", model=str(tmp_path / "st"), settings=EncodeSettings(instruction="Find")
        )


def test_a_window_is_bounded_in_rows_and_in_characters() -> None:
    def rows(count: int, text: str) -> Iterator[Row]:
        return (Row(number, None, text, "", ()) for number in range(count))

    short = [len(window) for window in windows(rows(ROWS_PER_WINDOW + 1, "a"))]
    assert short == [ROWS_PER_WINDOW, 1]
    long = "a" * (CHARACTERS_PER_WINDOW // 2)
    assert [len(window) for window in windows(rows(3, long))] == [2, 1]


def test_ray_has_to_be_installed(
    run: Run, model_folder: Path, jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, errors = run("encode", model_folder, jsonl, "--out", tmp_path / "out", "--engine", "ray")
    assert code == 1
    assert "pip install 'embedforge[ray]'" in errors


@pytest.mark.parametrize("option", ["--keep", "--instruction-column", "--column"])
def test_a_column_that_no_row_has_is_said_before_the_model_is_loaded(
    run: Run, tmp_path: Path, option: str
) -> None:
    """One that is misspelt gave nothing, and no word."""
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "title": "t"}\n{"text": "b", "url": "u"}\n')
    name = "titel,text" if option == "--column" else "titel"
    line = (
        "encode",
        "embedforge:forge-tiny",
        tmp_path / "texts.jsonl",
        "--out",
        tmp_path / "out",
        option,
        name,
    )
    code, _, err = run(*line)
    assert code == 1
    assert "no record has the column 'titel'; the first has text, title. Did you mean 'title'?" in err
