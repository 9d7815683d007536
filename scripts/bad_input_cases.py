"""The bad inputs of `bad_inputs`: by kind, over all verbs. A new fault's input is a line here."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
HUGE = 10**30
NUMBERS: list[Any] = [-1, HUGE, 1e300, float("inf"), float("nan"), True, "1:30", "many", [1], {"a": 1}]
"""None of them is a count, a rate, a share or a temperature."""


@dataclass(frozen=True)
class Case:
    """One command line."""

    verb: str
    name: str
    arguments: tuple[str, ...]
    needs_model: bool = False
    """A model has to be loaded before the fault shows, and so torch."""
    accepted: str = ""
    """Why exit code 0 is right."""


def write_materials(folder: Path) -> None:
    """Write what is not bad: pairs, a folder of text, a decoder, an NV-Embed checkpoint."""
    rows = [{"query": f"what is {n}", "positives": [f"{n} is the number {n}"]} for n in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    shutil.copytree(GOLDEN / "llm2vec_tiny" / "llama", folder / "tiny")
    (folder / "tiny" / "golden.safetensors").unlink()
    shutil.copytree(GOLDEN / "nvembed_tiny", folder / "official")
    (folder / "official" / "golden.safetensors").unlink()
    (folder / "docs").mkdir()
    for n in range(3):
        (folder / "docs" / f"{n}.md").write_text(f"# Part {n}\n\nA few words of part {n}.\n")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")


def cases_of(folder: Path) -> list[Case]:
    """Write the bad inputs into a folder and return all cases."""
    return [
        *recipe_values(folder),
        *recipe_files(folder),
        *recipe_overrides(),
        *data_files(folder),
        *text_folders(folder),
        *model_folders(folder),
        *model_values(folder),
        *options(),
        *indices(folder),
        *task_folders(folder),
    ]


# --- recipes -----------------------------------------------------------------------------------------------


def recipe() -> dict[str, Any]:
    """A recipe with nothing wrong in it."""
    stage = {"name": "one", "steps": 2, "batch_queries": 4, "warmup_steps": 1}
    return {
        "name": "mine",
        "model": {"base": "tiny", "pooling": {"kind": "latent", "latents": 4, "heads": 1, "head_dim": 8}},
        "contract": {"max_tokens": 32},
        "stages": [
            {**stage, "mix": {"sources": [{"path": "pairs.jsonl"}]}, "objective": {"kind": "contrastive"}}
        ],
        "training": {"precision": "float32"},
    }


STAGE = "stages.0."
KEYS = (
    *(
        "seed",
        "contract.max_tokens",
        "model.pooling.latents",
        "model.pooling.heads",
        "model.pooling.head_dim",
    ),
    *("model.adapter.rank", "model.adapter.alpha", "model.adapter.dropout", "training.save_steps"),
    *("training.log_steps", "training.keep_checkpoints", "training.eval_queries", f"{STAGE}steps"),
    *(f"{STAGE}batch_queries", f"{STAGE}negatives", f"{STAGE}query_max_tokens", f"{STAGE}learning_rate"),
    *(
        f"{STAGE}warmup_steps",
        f"{STAGE}weight_decay",
        f"{STAGE}max_grad_norm",
        f"{STAGE}tokens_per_micro_batch",
    ),
    *(f"{STAGE}objective.temperature", f"{STAGE}mix.sources.0.weight", f"{STAGE}mix.sources.0.cap"),
)


def recipe_values(folder: Path) -> Iterator[Case]:
    """Every number of a recipe, wrong in ten ways; in turn for `show`, `recipe` and `train`."""
    (folder / "values").mkdir()
    for number, (key, value) in enumerate((key, value) for key in KEYS for value in NUMBERS):
        values = recipe()
        *parents, last = key.split(".")
        node: Any = values
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        node[last] = value
        file = folder / "values" / f"{number}.yaml"
        text = yaml.safe_dump(values)
        file.write_text(text.replace(f"{last}: '1:30'", f"{last}: 1:30"))
        name, data = f"{key}={value!r}", ("--data", str(folder))
        if number % 3:
            yield Case(
                "train", name, ("train", str(file), *data, "--out", f"out/v{number}", "--device", "cpu")
            )
        else:
            yield Case("show", name, ("show", str(file), *data))
    wrong = recipe()
    wrong["stages"][0] |= {"steps": 3, "warmup_steps": 30}
    (folder / "values" / "warm.yaml").write_text(yaml.safe_dump(wrong))
    yield Case(
        "train",
        "warm-up longer than the stage",
        ("train", "values/warm.yaml", "--data", ".", "--out", "out/w"),
    )


def recipe_files(folder: Path) -> Iterator[Case]:
    """Files that are no recipe, or not only one."""
    steps = list(zip("abcdefgh", "bcdefghi", strict=True))
    nine = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in steps)
    merged = "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in steps)
    contents: dict[str, bytes | str] = {
        "alias bomb": "a: &a [1, 1, 1]\n" + nine,
        "merge bomb": "a: &a {x: 1, y: 2}\n" + merged,
        "alias of itself": "a: &a [*a]",
        "merge of itself": "a: &a {<<: *a}",
        "deep flow": "a: " + "[" * 100_000,
        "deep and closed": "a: " + "[" * 500 + "]" * 500,
        "deep mapping": "{a: " * 5000 + "1" + "}" * 5000,
        "deep block": "- " * 5000 + "1",
        "many values": "".join(f"k{n}: {n}\n" for n in range(30_000)),
        "large": "a: " + "x" * 2_000_000,
        "thousands of digits": "seed: " + "9" * 5000,
        "wrong date": "name: 2024-13-45",
        "wrong tag": "seed: !!int abc",
        "wrong switch": "seed: !!bool maybe",
        "python": "a: !!python/object/apply:os.system [id]",
        "binary": "name: !!binary AAAA\n",
        "key that is a list": "? [a]\n: b",
        "number as key": "1: 2",
        "null as key": "~: 2",
        "unknown alias": "a: *b",
        "tab": "a:\n\t- b",
        "unclosed": "a: [1, 2",
        "two documents": "a: 1\n---\nb: 2",
        "list": "[1, 2]",
        "word": "hello",
        "empty": "",
        "comment": "# nothing",
        "nul": "a: \x00",
        "latin-1": b"name: caf\xe9",
        "utf-16": "name: a".encode("utf-16"),
        "set": "!!set {a, b}",
        "circle": "extends: circle.yaml",
        "extends a number": "extends: 3",
        "extends nothing": "extends: nowhere",
        "extends a pipe": "extends: pipe.yaml",
        "stages is a word": "name: x\nstages: many",
        "stages of nulls": "name: x\nstages: [~, ~]",
        "stage of words": "name: x\nstages: [{name: [a], steps: {}, mix: ~}]",
        "objective is a word": "stages: [{name: a, steps: 1, objective: nce, mix: {sources: [{path: a}]}}]",
        "kind is a list": "stages: [{name: a, steps: 1, objective: {kind: [a]}, mix: {sources: []}}]",
        "name with a path": "name: x\nstages: [{name: ../a, steps: 1, mix: {sources: [{path: a}]}}]",
        "source without a path": "name: x\nstages: [{name: a, steps: 1, mix: {sources: [{}]}}]",
        "path is a number": "name: x\nstages: [{name: a, steps: 1, mix: {sources: [{path: 3}]}}]",
    }
    place = folder / "recipes"
    place.mkdir()
    os.mkfifo(place / "pipe.yaml")
    (place / "zero.yaml").symlink_to("/dev/zero")
    for number, (name, content) in enumerate(contents.items()):
        file = place / ("circle.yaml" if name == "circle" else f"{number}.yaml")
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        verb = ("train", "show", "quickstart")[number % 3]
        yield Case(verb, f"recipe: {name}", recipe_command(verb, file, number))
    (place / "deep.json").write_text("[" * 100_000)
    for other in ("pipe.yaml", "zero.yaml", "deep.json", "nowhere.yaml", "."):
        for verb in ("train", "adapt"):
            yield Case(verb, f"recipe: {other}", recipe_command(verb, place / other, len(other)))
    yield Case("show", "recipe: long name", ("show", "x" * 5000))
    yield Case("show", "recipe: nul in the name", ("show", "a\0b"))


def recipe_command(verb: str, file: Path, number: int) -> tuple[str, ...]:
    if verb == "show":
        return ("show", str(file))
    if verb == "train":
        return ("train", str(file), "--out", f"out/f{number}")
    return (verb, "docs", "--recipe", str(file), "--out", f"out/f{number}")


def recipe_overrides() -> Iterator[Case]:
    """Values of --set."""
    for text in (
        *(
            "seed",
            "=",
            "=3",
            "stages.9.steps=1",
            "stages.nowhere.steps=1",
            "stages=3",
            "name.first=x",
            "seed=-1",
        ),
        *("stages.one.steps=1:30", "stages.one.steps=true", "stages.one.steps=[", "stages.one.steps=*a"),
        *(
            "seed=" + "9" * 5000,
            "name=" + "[" * 5000,
            "a" + ".a" * 3000 + "=1",
            "stages.-1.steps=1",
            "seed.a.b=1",
        ),
        *(
            "stages.one.warmup_steps=500",
            "stages.one.objective.kind=nce",
            "model.pooling={kind: latent, latents: 1e9}",
        ),
    ):
        yield Case("show", f"--set {text[:40]}", ("show", "recipe.yaml", "--set", text))


# --- data --------------------------------------------------------------------------------------------------


STARTS = (
    *("empty.jsonl", "blank.jsonl", "words.jsonl", "list.jsonl", "deep.jsonl", "latin.jsonl", "binary.jsonl"),
    *("plain.jsonl.gz", "endless.jsonl.gz", "ragged.csv", "twice.csv", "header.csv", "fake.parquet"),
    *("array.json", "no-ending", "pipe.jsonl", "zero.jsonl", "folder.jsonl", "nowhere.jsonl"),
)
"""Files whose fault is in their first record."""


def data_files(folder: Path) -> Iterator[Case]:
    """Files that hold no Examples, for the verbs that read some."""
    row = '{"query": "a", "positives": ["b"]}\n'
    contents: dict[str, bytes | str] = {
        "empty.jsonl": "",
        "blank.jsonl": "\n \n\n",
        "words.jsonl": "hello\n",
        "list.jsonl": '["a", "b"]\n',
        "cut.jsonl": row + '{"query": "a", "posi',
        "deep.jsonl": '{"query": ' + "[" * 100_000 + "\n",
        "closed.jsonl": '{"query": "a", "positives": ' + "[" * 400 + "]" * 400 + "}\n",
        "digits.jsonl": '{"query": "a", "positives": ["b"], "query_id": ' + "9" * 5000 + "}\n",
        "no-query.jsonl": '{"positives": []}\n',
        "no-positive.jsonl": '{"query": "a"}\n',
        "no-positives.jsonl": '{"query": "a", "positives": []}\n',
        "null.jsonl": '{"query": null, "positives": [null]}\n',
        "switch.jsonl": '{"query": true, "positives": ["b"]}\n',
        "number.jsonl": '{"query": 3, "positives": ["b"]}\n',
        "infinite.jsonl": '{"query": Infinity, "positives": ["b"]}\n',
        "blank-text.jsonl": '{"query": "  ", "positives": ["b"]}\n',
        "nested.jsonl": '{"query": "a", "positives": [["b"]]}\n',
        "document.jsonl": '{"query": "a", "positives": [{"txt": "b"}]}\n',
        "unknown.jsonl": '{"query": "a", "positives": ["b"], "wight": 3}\n',
        "negatives.jsonl": '{"query": "a", "positives": ["b"], "negative_' + "9" * 5000 + '": 3}\n',
        "surrogate.jsonl": '{"query": "\\ud800", "positives": ["b"]}\n',
        "latin.jsonl": b'{"query": "caf\xe9", "positives": ["b"]}\n',
        "utf16.jsonl": row.encode("utf-16"),
        "binary.jsonl": bytes(range(256)),
        "plain.jsonl.gz": row,
        "cut.jsonl.gz": gzip.compress(row.encode() * 1000)[:40],
        "endless.jsonl.gz": gzip.compress(b" " * 100_000_000, 9),
        "ragged.csv": "query,positive\na,b,c\n",
        "twice.csv": "query,query\na,b\n",
        "quote.csv": 'query,positive\n"a,b\n',
        "header.csv": "query,positive\n",
        "other.csv": "x,y\na,b\n",
        "fake.parquet": "hello",
        "array.json": "[1]",
        "no-ending": row,
    }
    place = folder / "data"
    place.mkdir()
    for name, content in contents.items():
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    os.mkfifo(place / "pipe.jsonl")
    (place / "zero.jsonl").symlink_to("/dev/zero")
    (place / "folder.jsonl").mkdir()
    for number, name in enumerate([*contents, "pipe.jsonl", "zero.jsonl", "folder.jsonl", "nowhere.jsonl"]):
        file = str(place / name)
        yield Case("curate", name, ("curate", file, "--out", f"out/c{number}"))
        yield Case("mine", name, ("mine", file, "--teacher", "bm25", "--out", f"out/m{number}"))
        source = ("--set", f"stages.0.mix.sources.0.path={json.dumps(file)}")
        # The beginning of a file is read before torch is imported, the rest once, after it.
        line = ("train", "recipe.yaml", "--out", f"out/t{number}", *source)
        yield Case("train", name, line, needs_model=name not in STARTS)
        if number % 4 == 0:
            shown = ("show", "recipe.yaml", *source)
            yield Case("show", name, shown, accepted="it shows the recipe and says in the tree what is wrong")
        if number % 4 == 1:
            yield Case("prune", name, ("prune", "tiny", f"out/p{number}", "--vocabulary", file))
        if number % 4 == 2:
            corpus = (
                "mine",
                "pairs.jsonl",
                "--teacher",
                "bm25",
                "--corpus",
                file,
                "--out",
                f"out/mc{number}",
            )
            yield Case("mine", f"--corpus {name}", corpus)


def text_folders(folder: Path) -> Iterator[Case]:
    """Folders of no text, for the verbs that read some."""
    place = folder / "folders"
    for name in ("binary", "hidden/.x", "pipes", "csv", "little"):
        (place / name).mkdir(parents=True)
    (place / "binary" / "a.bin").write_bytes(bytes(range(256)))
    (place / "hidden" / ".x" / "a.md").write_text("# hello\n")
    os.mkfifo(place / "pipes" / "a.md")
    (place / "csv" / "a.csv").write_text("a,b\n1,2\n")
    (place / "little" / "a.md").write_text("# hello\n\nThere is not much to read.\n")
    late = {"folders/pipes": True, "folders/little": True}  # what is in a file shows when it is read
    for name in (
        "empty",
        "nowhere",
        "pairs.jsonl",
        "pipe",
        "folders/binary",
        "folders/hidden",
        "folders/csv",
        *late,
    ):
        for verb in ("quickstart", "adapt"):
            line = (verb, name, "--out", f"out/{verb}", "--device", "cpu")
            yield Case(verb, f"folder {name}", line, needs_model=late.get(name, False))
        asked = ("--endpoint", "http://127.0.0.1:9", "--model", "m", "--examples", "1")
        yield Case(
            "synthesize", f"--corpus {name}", ("synthesize", *asked, "--corpus", name, "--out", "out/s")
        )
    for verb in ("quickstart", "adapt"):
        for option, values in (
            ("--minutes", ("nan", "inf", "-1", "0", "1e300", "x")),
            ("--seed", ("-1", "x", str(2**64))),
        ):
            for value in values:
                yield Case(verb, f"{option} {value}", (verb, "docs", option, value, "--out", "out/o"))
        yield Case(verb, "--base nowhere", (verb, "docs", "--base", "./nowhere", "--out", "out/b"))
        yield Case(verb, "--base of an empty folder", (verb, "docs", "--base", "empty", "--out", "out/b"))
        yield Case(verb, "--out is a file", (verb, "docs", "--out", "pairs.jsonl"))


# --- models ------------------------------------------------------------------------------------------------

LINES: dict[str, tuple[str, ...]] = {
    "export": ("export", "MODEL", "out/e"),
    "evaluate": ("evaluate", "MODEL", "--tasks", "empty", "--out", "out/v"),
    "prune": ("prune", "MODEL", "out/p", "--layers", "1"),
    "probe": ("probe", "MODEL"),
    "mine": ("mine", "pairs.jsonl", "--teacher", "MODEL", "--out", "out/m", "--device", "cpu"),
    "merge": ("merge", "MODEL", "tiny", "--out", "out/g"),
    "train": ("train", "recipe.yaml", "--out", "out/t", "--device", "cpu", "--set", "model.base=MODEL"),
    "convert": ("convert", "MODEL", "out/c"),
}


def on_model(verbs: Iterable[str], model: str, name: str, *, needs_model: bool = False) -> Iterator[Case]:
    """The command of each verb on a model's folder."""
    for verb in verbs:
        line = tuple(word.replace("MODEL", model) for word in LINES[verb])
        yield Case(verb, name, line, needs_model=needs_model)


def model_folders(folder: Path) -> Iterator[Case]:
    """What is no model, or not a whole one."""
    place = folder / "models"
    place.mkdir()
    for name in ("./nowhere", "empty", "pairs.jsonl", "pipe"):
        yield from on_model(LINES, name, f"model {name}")
    files: dict[str, tuple[str, bytes | None, bool]] = {
        "config empty": ("config.json", b"", False),
        "config cut": ("config.json", b'{"model_type": "lla', False),
        "config list": ("config.json", b"[]", False),
        "config deep": ("config.json", b"[" * 100_000, False),
        "config latin-1": ("config.json", b'{"a": "\xe9"}', False),
        "no type": ("config.json", b"{}", True),
        "no weights": ("model.safetensors", None, True),
        "weights empty": ("model.safetensors", b"", True),
        "weights of zeros": ("model.safetensors", bytes(5000), True),
        "weights of a long header": ("model.safetensors", b"\xff" * 100, True),
        "no tokenizer": ("tokenizer.json", None, True),
        "tokenizer cut": ("tokenizer.json", b'{"version": ', True),
        "tokenizer deep": ("tokenizer.json", b"[" * 100_000, True),
        "contract deep": ("contract.json", b"[" * 100_000, True),
        "contract wrong": ("contract.json", b'{"max_tokens": true, "pooling": 3}', True),
    }
    for name, (file, content, needs_model) in files.items():
        model = copy_of(folder / "tiny", place / name.replace(" ", "-"))
        (model / file).unlink(missing_ok=True)
        if content is not None:
            (model / file).write_bytes(content)
        verbs = ("export", "probe") if needs_model else ("export", "prune", "train", "merge")
        if not file.startswith("contract") or "probe" not in verbs:
            yield from on_model(verbs, str(model), name, needs_model=needs_model)
        else:
            yield from on_model(("export", "mine"), str(model), name, needs_model=needs_model)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        model = copy_of(folder / "tiny", place / f"pipe-{name}")
        (model / name).unlink()
        os.mkfifo(model / name)
        yield from on_model(("export", "probe", "train", "mine", "evaluate"), str(model), f"{name} is a pipe")


VALUES: dict[str, list[Any]] = {
    "hidden_size": [-1, 0, "a", True, 10**8, HUGE, 1.5, [], float("inf")],
    "vocab_size": [0, 10**8, HUGE, "a"],
    "num_hidden_layers": [-1, 10**9, "a", True],
    "num_attention_heads": [0, "a", 7, 10**9],
    "num_key_value_heads": [0, 3, "a"],
    "intermediate_size": [0, 10**9, {}],
    "max_position_embeddings": [-1, "a"],
    "rms_norm_eps": ["a", float("nan"), True],
    "model_type": [3, [], {}, "nosuch", ""],
    "rope_scaling": ["a", 3, {"rope_type": "nosuch"}],
    "rope_parameters": ["a", {"rope_type": []}],
    "hidden_act": ["nosuch", 3, []],
    "architectures": ["a", 3, [3]],
    "dtype": ["nosuch", 3, []],
    "pad_token_id": ["a", -7, 10**9],
    "eos_token_id": ["a", {}],
    "quantization_config": ["a", 3, {"quant_method": "nosuch"}],
    "tie_word_embeddings": ["a", []],
    "head_dim": [0, 7, "a"],
    "auto_map": [3],
    "sliding_window": ["a"],
    "text_config": [3, {"hidden_size": -1}],
    "attention_bias": ["a"],
    "layer_types": [["nosuch"], 3],
}
HARMLESS = {
    "architectures='a'": "transformers does not read it where the kind of model is known",
    "architectures=3": "as above",
    "architectures=[3]": "as above",
    "pad_token_id=-7": "padding is the tokenizer's, checked against the embeddings",
    "quantization_config={'quant_method': 'nosuch'}": "transformers leaves it out with a warning",
    "sliding_window='a'": "this kind of decoder has no window",
}


def model_values(folder: Path) -> Iterator[Case]:
    """Every wrong value of a config.json; what shows without the model must, whichever verb is asked."""
    place = folder / "configs"
    place.mkdir()
    values = json.loads((folder / "tiny" / "config.json").read_text())
    for number, (key, value) in enumerate((key, value) for key, some in VALUES.items() for value in some):
        model = copy_of(folder / "tiny", place / str(number))
        (model / "config.json").write_text(json.dumps(values | {key: value}))
        name = f"{key}={value!r}"
        verbs = ("probe", "export") if number % 2 else ("probe", "prune")
        for case in on_model(verbs, str(model), name, needs_model=True):
            yield Case(case.verb, name, case.arguments, needs_model=True, accepted=HARMLESS.get(name, ""))
    official = json.loads((folder / "official" / "config.json").read_text())
    latent = official["latent_attention_config"]
    for key, value in (
        ("num_latents_value", 10**12),
        ("num_latents_value", "a"),
        ("cross_dim_head", -1),
        ("num_cross_heads", HUGE),
    ):
        model = copy_of(folder / "official", place / f"{key}-{value}")
        (model / "config.json").write_text(
            json.dumps(official | {"latent_attention_config": latent | {key: value}})
        )
        yield from on_model(("convert", "export"), str(model), f"{key}={value!r}", needs_model=True)


def copy_of(source: Path, target: Path) -> Path:
    """Copy a folder by links: nothing in it is written to, files are replaced."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name == "config.json":
            shutil.copy(file, target)
        else:
            os.link(file, target / file.name)
    return target


# --- options -----------------------------------------------------------------------------------------------


def options() -> Iterator[Case]:  # noqa: C901
    """Values of options that make no sense."""
    mine = ("mine", "pairs.jsonl", "--out", "out/o")
    for line in (
        *(("--candidates", value) for value in ("0", "-1", "x", str(10**12), str(HUGE))),
        *(("--negatives", value) for value in ("0", str(10**12), "1.5")),
        *(("--memory-gb", value) for value in ("nan", "inf", "-1", "0", "1e300")),
        *(("--value", value) for value in ("nan", "inf", "x")),
        *(("--rule", value) for value in ("best", "")),
        *(("--cap", value) for value in ("0", "-3", str(HUGE))),
        *(("--sample-from", value) for value in ("0", "1", str(HUGE))),
        *(("--seed", value) for value in ("-1", str(2**64))),
        *(
            ("--index", "IVF"),
            ("--kind", "nosuch"),
            ("--corpus", "nowhere"),
            ("--max-tokens", "64"),
            ("--dtype", "int8"),
        ),
    ):
        yield Case("mine", " ".join(line)[:60], (*mine, "--teacher", "bm25", *line))
    for teacher in (
        "bm26",
        "",
        "run:nowhere",
        "run:pipe",
        "http://127.0.0.1:9/v1",
        "http://me:secret@h/v1#m",
        "http://#m",
    ):
        yield Case("mine", f"--teacher {teacher}", (*mine, "--teacher", teacher))
    curate = ("curate", "pairs.jsonl", "--out", "out/q")
    for line in (
        *(("--near", value) for value in ("nan", "2", "-1", "inf", "x")),
        *(("--query-length", value) for value in ("", ":", "a:b", "5:2", "-1:3", "9" * 5000 + ":", "1:2:3")),
        *(
            ("--bm25", "nan"),
            ("--ngram", "-1"),
            ("--ngram", "3"),
            ("--languages", ""),
            ("--languages", "xx,yy"),
        ),
        *(("--unit", "bytes"), ("--against", "nowhere"), ("--against", "empty"), ("--against", "pipe")),
        *(
            ("--language-confidence", "2"),
            ("--top-k", "0"),
            ("--pool", "0"),
            ("--seed", "-1"),
            ("--cap", "0"),
        ),
        *(("--threshold", "nan"), ("--teacher", "./nowhere"), ("--teacher", "empty"), ("--kind", "nosuch")),
    ):
        yield Case("curate", " ".join(line)[:60], (*curate, *line))
    asked = ("synthesize", "--model", "m", "--out", "out/y", "--examples", "1")
    for url in (
        "",
        "x",
        "ftp://h",
        "http://",
        "http://a b",
        "http://h:0",
        "http://h:99999",
        "http://u:secret@h",
        "http://h?k=1",
        "http://[::1",
    ):
        yield Case("synthesize", f"--endpoint {url}", (*asked, "--endpoint", url))
    for line in (
        *(
            (option, value)
            for option in ("--timeout", "--requests-per-minute", "--max-cost")
            for value in ("nan", "-1", "0")
        ),
        *(
            ("--temperature", "nan"),
            ("--temperature", "3"),
            ("--top-p", "0"),
            ("--top-p", "nan"),
            ("--timeout", "inf"),
        ),
        *(
            ("--price-in", "nan", "--price-out", "1"),
            ("--max-tokens", "0"),
            ("--max-requests", "-1"),
            ("--concurrency", "0"),
        ),
        *(
            ("--examples", "0"),
            ("--examples", str(HUGE)),
            ("--group", "nosuch"),
            ("--language", "Klingon"),
            ("--model", " "),
        ),
        *(
            ("--key-variable", "NO_SUCH"),
            ("--seed", "-1"),
            ("--test",),
            ("--max-answer-tokens", "0"),
            ("--max-answer-tokens", str(HUGE)),
        ),
    ):
        yield Case("synthesize", " ".join(line)[:60], (*asked, "--endpoint", "http://127.0.0.1:9", *line))
    for line in (("nosuch",), ("--paper", "nosuch"), ("--kind", "nosuch"), ("",)):
        yield Case("catalog", " ".join(line), ("catalog", *line))
    for line in (
        ("get", "nosuch"),
        ("get", ""),
        ("get", "smollm2-135m", "--wheel", "nowhere"),
        ("get", "smollm2-135m", "--wheel", "pairs.jsonl"),
        ("get", "smollm2-135m", "--wheel", "pipe"),
    ):
        hashed = line[-1] == "pairs.jsonl"  # by what unpacks it, which needs torch
        yield Case("base", " ".join(line), ("base", *line), needs_model=hashed)
    for line in (
        ("copy", "nosuch"),
        ("copy", "tiny", "--out", "pairs.jsonl"),
        ("copy", "tiny", "--out", "a.txt"),
        ("show",),
    ):
        yield Case("recipe", " ".join(line), ("recipe", *line))
    for line in (
        ("--layers", "x"),
        ("--layers", "0"),
        ("--layers", "-1"),
        ("--layers", "nan"),
        ("--layers", "inf"),
        ("--layers", "1.5"),
        ("--layers", "9,1"),
        ("--layers", "99"),
        (),
        ("--min-count", "3"),
        ("--vocabulary", "nowhere.txt"),
    ):
        yield Case(
            "prune",
            " ".join(line) or "nothing",
            ("prune", "tiny", "out/z", *line),
            needs_model=line == ("--layers", "99"),
        )
    for line in (
        ("--how", "best"),
        ("--weights", "1"),
        ("--weights", "nan,1"),
        ("--weights", "x"),
        ("--weights", "-1,2"),
        ("--weights", "0,0"),
        ("--weights", "inf,1"),
        ("--dev", "nowhere.jsonl"),
    ):
        asked_of_merge = line[1] in ("best", "1", "-1,2", "0,0")  # whose own checks stand beside its sums
        words = ("merge", "tiny", "official", "--out", "out/h", *line)
        yield Case("merge", " ".join(line), words, needs_model=asked_of_merge)
    for line in (("--device", "nosuch"), ("--attention", "nosuch")):
        yield Case("probe", " ".join(line), ("probe", "tiny", *line), needs_model=True)
    for line in (
        ("--dtype", "int4"),
        ("--pooling", "nosuch"),
        ("--max-tokens", "-1"),
        ("--chat-template", "x"),
        ("--attention", "nosuch"),
        ("--adapter", "./nowhere"),
        ("--adapter", "empty"),
    ):
        yield Case(
            "export", " ".join(line), ("export", "tiny", "out/x", *line), needs_model=line[0] != "--adapter"
        )


def indices(folder: Path) -> Iterator[Case]:
    """Folders without an index, or a damaged one."""
    place = folder / "indices"
    facts = {"version": 1, "model": "tiny", "fingerprint": "x", "documents": 1, "dimensions": 2}
    contents: dict[str, dict[str, bytes]] = {
        "empty": {"index.json": b""},
        "deep": {"index.json": b"[" * 100_000},
        "version": {"index.json": json.dumps(facts | {"version": 99}).encode()},
        "alone": {"index.json": json.dumps(facts).encode()},
        "pickle": {
            "index.json": json.dumps(facts).encode(),
            "vectors.npy": b"\x80\x04K\x01.",
            "offsets.npy": b"",
        },
        "huge": {"index.json": json.dumps(facts | {"documents": HUGE}).encode()},
    }
    for name, files in contents.items():
        (place / name).mkdir(parents=True)
        for file, content in files.items():
            (place / name / file).write_bytes(content)
        yield Case("search", f"index {name}", ("search", f"indices/{name}", "hello"))
    (place / "pipe").mkdir()
    os.mkfifo(place / "pipe" / "index.json")
    for where, query, more in (
        *(
            ("indices/pipe", "hello", ()),
            ("empty", "hello", ()),
            ("nowhere", "hello", ()),
            ("pairs.jsonl", "hello", ()),
        ),
        *(
            ("empty", "", ()),
            ("empty", "x", ("-k", "0")),
            ("empty", "x", ("-k", "-1")),
            ("empty", "x", ("-k", "a")),
        ),
    ):
        yield Case("search", f"{where} {query} {' '.join(more)}", ("search", where, query, *more))


def task_folders(folder: Path) -> Iterator[Case]:
    """Folders of tasks that cannot be evaluated."""
    place = folder / "tasks"
    for name in ("sts/deep", "sts/empty", "nosuch/a", "retrieval/none/qrels"):
        (place / name).mkdir(parents=True)
    (place / "sts" / "deep" / "test.jsonl").write_text("[" * 100_000)
    (place / "sts" / "empty" / "test.jsonl").write_text("")
    (place / "retrieval" / "none" / "qrels" / "test.tsv").write_text("a\tb\n")
    for tasks in (
        "nowhere",
        "empty",
        "tasks/nosuch",
        "tasks/sts/deep",
        "tasks/sts/empty",
        "tasks/retrieval/none",
        "pipe",
    ):
        line = ("evaluate", "tiny@mean", "--tasks", tasks, "--out", "out/n")
        yield Case("evaluate", f"--tasks {tasks}", line, needs_model=True)
    for line in (
        ("bm25", "bm25", "--tasks", "empty"),
        ("bm25", "--tasks", "empty", "--instruction", "x"),
        ("bm25",),
    ):
        yield Case(
            "evaluate", " ".join(line), ("evaluate", *line, "--out", "out/n"), needs_model="--tasks" in line
        )
