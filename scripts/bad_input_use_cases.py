"""The bad inputs of the verbs that put a model to work: encode, index, serve, compress, distill, sweep.

They lean on what `bad_input_cases` has written: its data files, folders, damaged models and indexes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from bad_input_cases import HUGE, Case

EMBEDDER = "embedforge:forge-tiny"
NO_MODELS = ("./nowhere", "empty", "pairs.jsonl", "pipe", "", "a\0b", "models/config-cut")
FILES = (
    *("empty.jsonl", "blank.jsonl", "words.jsonl", "list.jsonl", "cut.jsonl", "deep.jsonl", "null.jsonl"),
    *("switch.jsonl", "blank-text.jsonl", "surrogate.jsonl", "latin.jsonl", "utf16.jsonl", "binary.jsonl"),
    *("plain.jsonl.gz", "cut.jsonl.gz", "endless.jsonl.gz", "ragged.csv", "twice.csv", "header.csv"),
    *("other.csv", "fake.parquet", "array.json", "no-ending", "pipe.jsonl", "zero.jsonl", "folder.jsonl"),
    "nowhere.jsonl",
)
"""Of `bad_input_cases.data_files`; what is wrong with each is wrong for whoever reads the column `query`."""


def use_cases(folder: Path) -> list[Case]:
    """Write what else is needed into a folder and return the cases."""
    lines = [json.dumps({"text": f"the number {n}", "n": n}) for n in range(4)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    return [
        *encoding(),
        *indexing(),
        *serving(),
        *compressing(),
        *exporting(),
        *distilling(),
        *sweeping(),
    ]


WORDLESS = ("null.jsonl", "blank-text.jsonl")
"""Files with a query that has no word, or is null."""


def encoding() -> Iterator[Case]:
    """`embedforge encode`."""
    for name in FILES:
        line = ("encode", EMBEDDER, f"data/{name}", "--column", "query", "--out", f"out/e-{name}")
        counted = "it has the vector of the empty text, and is counted" if name in WORDLESS else ""
        yield Case("encode", name, line, accepted=counted)
    for model in NO_MODELS:
        yield Case("encode", f"model {model}", ("encode", model, "texts.jsonl", "--out", "out/em"))
    for line in (
        *(("--column", value) for value in ("nosuch", "", ",", "text,nosuch", "n")),
        *(("--id", value) for value in ("nosuch", "")),
        *(("--keep", value) for value in ("nosuch", "vector", "row", ",")),
        *(("--dim", value) for value in ("0", "-1", "x", "1.5")),
        *(("--rows-per-shard", value) for value in ("0", "-1", "x")),
        *(("--shard", value) for value in ("0/3", "4/3", "a/b", "1/0", "-1/3", "1", "1/2/3", "", "nan/2")),
        *(("--max-tokens", value) for value in ("0", "-1", "x")),
        *(("--format", "csv"), ("--precision", "int4"), ("--dtype", "int8"), ("--engine", "dask")),
        *(("--instruction", "a", "--instruction-column", "text"), ("--instruction-column", "nosuch")),
        *(
            ("--precision", "binary", "--dim", "7"),
            ("--workers", "0"),
            ("--engine", "ray", "--workers", "-1"),
        ),
        *(("--out", "pairs.jsonl"), ("--out", "docs"), ("--out", "pipe"), ("--out", "a\0b")),
    ):
        asked = () if line[0] == "--out" else ("--out", "out/eo")
        yield Case("encode", " ".join(line)[:60], ("encode", EMBEDDER, "texts.jsonl", *asked, *line))
    for line in (("--dim", str(HUGE)), ("--dim", "4096"), ("--device", "nosuch"), ("--device", "cuda:99")):
        name = " ".join(line)
        words = ("encode", EMBEDDER, "texts.jsonl", "--out", f"out/eh{len(name)}", *line)
        yield Case("encode", name, words, needs_model=True)
    bare = ("encode", "tiny", "texts.jsonl", "--out", "out/eb")
    yield Case("encode", "a bare decoder", bare, needs_model=True)
    yield Case("encode", "- of xml", ("encode", EMBEDDER, "-", "--stdin-format", "xml", "--out", "out/ex"))
    yield Case("encode", "- of nothing", ("encode", EMBEDDER, "-", "--out", "out/en"))
    yield Case("encode", "no input", ("encode", "--out", "out/en"))


def indexing() -> Iterator[Case]:
    """`embedforge index`, and `add`, `remove`, `compact`; `search` where no model is needed."""
    for name in ("empty", "nowhere", "pipe", "folders/binary", "folders/hidden", "folders/pipes", "a\0b"):
        yield Case("index", name, ("index", name, "--model", EMBEDDER, "--out", "out/i"))
    for name in (
        *("empty.jsonl", "words.jsonl", "list.jsonl", "deep.jsonl", "latin.jsonl", "binary.jsonl"),
        *("plain.jsonl.gz", "endless.jsonl.gz", "ragged.csv", "twice.csv", "header.csv", "fake.parquet"),
        *("other.csv", "pipe.jsonl", "zero.jsonl", "folder.jsonl", "nowhere.jsonl"),
    ):
        yield Case("index", name, ("index", f"data/{name}", "--model", EMBEDDER, "--out", f"out/i-{name}"))
    for model in (*NO_MODELS, "tiny"):
        line = ("index", "docs", "--model", model, "--out", "out/im")
        yield Case("index", f"--model {model}", line, needs_model=model == "tiny")
    for out in ("pairs.jsonl", "docs", "pipe", "http://host/index", "nosuch://x", "", "a\0b"):
        yield Case("index", f"--out {out}", ("index", "docs", "--model", EMBEDDER, "--out", out))
    for name in ("empty", "deep", "version", "alone", "pickle", "huge", "pipe"):
        for line in (("add", "docs"), ("remove", "x"), ("compact",)):
            words = ("index", line[0], f"indices/{name}", *line[1:])
            yield Case("index", f"{line[0]} of an index {name}", words)
    for where in ("nowhere", "empty", "pairs.jsonl", "docs"):
        yield Case("index", f"compact {where}", ("index", "compact", where))
        yield Case("search", f"--mode of {where}", ("search", where, "x", "--mode", "nosuch"))
        yield Case("search", f"--filter of {where}", ("search", where, "x", "--filter", "="))


def serving() -> Iterator[Case]:
    """`embedforge serve`, which must not begin to serve."""
    for model in (*NO_MODELS, "tiny"):
        line = ("serve", model, "--port", "0")
        yield Case("serve", f"model {model}", line, needs_model=model == "tiny")
    for name in ("empty", "deep", "version", "alone", "pickle", "huge", "pipe"):
        line = ("serve", EMBEDDER, "--port", "0", "--index", f"indices/{name}")
        yield Case("serve", f"--index {name}", line, needs_model=True)
    for line in (
        *(("--port", value) for value in ("-1", "65536", "x", "1:30")),
        *(("--queue-tokens", value) for value in ("0", "-1", "x")),
        *(("--max-texts", "0"), ("--max-body", "0"), ("--tokens-per-batch", "0")),
        *(("--index", value) for value in ("nowhere", "pairs.jsonl", "pipe")),
    ):
        yield Case("serve", " ".join(line), ("serve", EMBEDDER, *line))
    for line in (("--host", "no such host"), ("--host", "256.0.0.1"), ("--device", "nosuch")):
        words = ("serve", EMBEDDER, "--port", "0", *line)
        yield Case("serve", " ".join(line), words, needs_model=True)


def compressing() -> Iterator[Case]:
    """`embedforge compress` and `compress weights`."""
    for model in NO_MODELS:
        for line in (("compress", model, "--tasks", "empty"), ("compress", "weights", model, "--int8")):
            yield Case("compress", f"{' '.join(line)[:40]}", (*line, "--out", "out/k"))
    for line in (
        *(("--dims", value) for value in ("", "x", "8,x", "1.5", ",")),
        *(("--within", value) for value in ("nan", "-1", "101", "x")),
        *(("--rotate", value) for value in ("nowhere.txt", "pipe", "empty")),
        *(("--candidates", "0"), ("--instruction", "x"), ("--save-rotated", "out/r"), ("--max-tokens", "0")),
    ):
        words = ("compress", EMBEDDER, "--tasks", "empty", "--out", "out/k", *line)
        yield Case("compress", " ".join(line), words)
    for line in (("--dims", "0"), ("--dims", "-1"), ("--dims", str(HUGE)), ("--forms", "nosuch"), ()):
        words = ("compress", EMBEDDER, "--tasks", "empty", "--out", "out/k", *line)
        yield Case("compress", " ".join(line) or "--tasks of an empty folder", words, needs_model=True)
    weights = ("compress", "weights", EMBEDDER, "--out", "out/w")
    for line in (
        *(("--recover", value) for value in ("-1", "x")),
        *(("--texts", value) for value in ("nowhere.txt", "pipe", "empty")),
        *(("--prune", "nosuch"), ("--batch", "1"), ("--seed", "-1")),
    ):
        yield Case("compress", f"weights {' '.join(line)}", (*weights, *line))
    pruned = (*weights, "--prune", "magnitude")
    for line in (
        *(
            (*pruned, "--sparsity", value)
            for value in ("nan", "0", "1", "-1", "1e300", "x", "", "2:1", "0:4")
        ),
        *((*pruned, "--sparsity", value) for value in ("4:4", "1:2:3", "2:7", f"2:{HUGE}")),
        *((*pruned, "--recover", "3", "--learning-rate", value) for value in ("nan", "inf", "-1", "1e300")),
        (*weights, "--prune", "wanda"),
        weights,
    ):
        yield Case("compress", f"weights {' '.join(line[5:])[:40]}", line, needs_model=True)


def exporting() -> Iterator[Case]:
    """`embedforge export --to`."""
    for model in NO_MODELS:
        yield Case("export", f"--to onnx of {model}", ("export", model, "out/x", "--to", "onnx"))
    for line in (("--to", "nosuch"), ("--to", ""), ("--to", "onnx", "--dtype", "int4"), ("--int8",)):
        yield Case("export", " ".join(line), ("export", EMBEDDER, "out/x", *line))
    for out in ("pairs.jsonl", "docs", "pipe"):
        line = ("export", EMBEDDER, out, "--to", "onnx")
        yield Case("export", f"--to onnx into {out}", line, needs_model=True)
    bare = ("export", "tiny", "out/x", "--to", "onnx")
    yield Case("export", "--to onnx of a bare decoder", bare, needs_model=True)


def distilling() -> Iterator[Case]:
    """`embedforge distill`."""
    asked = ("--student", "tiny", "--text", "docs", "--out", "out/d")
    for teacher in (*NO_MODELS, "http://me:secret@h/v1#m", "http://#m", "http://h:99999/v1#m"):
        yield Case("distill", f"teacher {teacher}", ("distill", teacher, *asked))
    for student in NO_MODELS:
        line = ("distill", EMBEDDER, "--student", student, "--text", "docs", "--out", "out/d")
        yield Case("distill", f"--student {student}", line)
    for text in ("nowhere", "empty", "pipe", "pairs.jsonl", "folders/binary"):
        line = ("distill", EMBEDDER, "--student", "tiny", "--text", text, "--out", "out/d")
        yield Case("distill", f"--text {text}", line)
    for line in (
        *(("--minutes", value) for value in ("nan", "inf", "-1", "0", "1e300", "x")),
        *(("--seed", value) for value in ("-1", "x")),
        *(("--recipe", value) for value in ("nosuch", "recipe.yaml", "tiny", "empty")),
        *(("--set", value) for value in ("x", "=", "stages.nowhere.steps=1", "stages.distill.steps=1:30")),
    ):
        yield Case("distill", " ".join(line), ("distill", EMBEDDER, *asked, *line))


def sweeping() -> Iterator[Case]:
    """`embedforge sweep`."""
    sweep = ("sweep", "recipe.yaml", "--data", ".", "--out", "out/s")
    compared = ("--dev", "pairs.jsonl")
    for grid in (
        *("", "x", "seed", "=1", "seed=", "seed=1,1", "seed=-1,2", "stages.9.steps=1,2", "nosuch=1,2"),
        *("stages.one.steps=1:30,2", "stages.one.steps=true,2", "stages.one.steps=[", "stages=1,2"),
        *(f"stages.one.steps={HUGE},2", "stages.one.learning_rate=nan,1", "model.base=./nowhere,empty"),
    ):
        yield Case("sweep", f"--grid {grid}"[:60], (*sweep, *compared, "--grid", grid))
    grid = ("--grid", "stages.one.steps=1,2")
    for line in (
        *(("--seeds", value) for value in ("0", "-1", "x", str(HUGE))),
        *(("--dev", value) for value in ("nowhere.jsonl", "pipe", "empty", "data/words.jsonl")),
        *(("--tasks", value) for value in ("nowhere", "empty", "pipe")),
        (),
    ):
        more = () if line and line[0] != "--seeds" else compared if line else ()
        words = (*sweep, *grid, *more, *line)
        needs_model = line[:1] == ("--tasks",)  # which mteb is asked for
        yield Case("sweep", " ".join(line) or "nothing to compare on", words, needs_model=needs_model)
    for recipe in ("nowhere.yaml", "recipes/4.yaml", "pipe", "empty", "nosuch", ""):
        line = ("sweep", recipe, *grid, *compared, "--out", "out/s")
        yield Case("sweep", f"recipe {recipe}", line)
