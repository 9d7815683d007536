"""Odd bad inputs: names that no file can have, circles of links, empty words, options at odds, limits.

They lean on what `bad_input_cases` and `bad_input_use_cases` have written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bad_input_cases import Case

EMBEDDER = "embedforge:forge-tiny"
NAMES = {"nul": "a\0b", "a circle of links": "./circle"}
"""Neither is a file or a folder to read."""
NO_OUTPUT = {"nul": "a\0b", "below a file": "pairs.jsonl/x"}
"""Nor may these be written to."""
READ: dict[str, tuple[str, ...]] = {
    "quickstart": ("quickstart PATH --out out/1", "quickstart docs --out out/1 --base PATH"),
    "adapt": ("adapt PATH --out out/1", "adapt docs --out out/1 --recipe PATH"),
    "train": ("train PATH --out out/1", "train recipe.yaml --out out/1 --data PATH"),
    "show": ("show PATH",),
    "sweep": (
        "sweep PATH --grid stages.one.steps=1,2 --dev pairs.jsonl --out out/1",
        "sweep recipe.yaml --data . --grid stages.one.steps=1,2 --dev PATH --out out/1",
    ),
    "synthesize": (
        "synthesize --endpoint http://127.0.0.1:9 --model m --examples 1 --out out/1 --corpus PATH",
    ),
    "curate": (
        "curate PATH --out out/1",
        "curate pairs.jsonl --out out/1 --against PATH",
        "curate pairs.jsonl --out out/1 --unit tokens --tokenizer PATH --query-length 1:9",
        "curate pairs.jsonl --out out/1 --teacher PATH",
    ),
    "mine": (
        "mine PATH --teacher bm25 --out out/1",
        "mine pairs.jsonl --teacher PATH --out out/1",
        "mine pairs.jsonl --teacher bm25 --corpus PATH --out out/1",
        "mine pairs.jsonl --teacher run:PATH --out out/1",
    ),
    "evaluate": ("evaluate PATH --tasks empty --out out/1", "evaluate tiny@mean --tasks PATH --out out/1"),
    "encode": ("encode PATH texts.jsonl --out out/1", f"encode {EMBEDDER} PATH --out out/1"),
    "index": (
        f"index PATH --model {EMBEDDER} --out out/1",
        "index docs --model PATH --out out/1",
        "index add PATH docs",
        "index remove PATH x",
        "index compact PATH",
    ),
    "search": ("search PATH hello", "search indices/alone hello --model PATH"),
    "serve": ("serve PATH --port 0", f"serve {EMBEDDER} --port 0 --index PATH"),
    "push": ("push PATH me/model --dry-run",),
    "compress": (
        "compress PATH --tasks empty --out out/1",
        f"compress {EMBEDDER} --tasks PATH --out out/1",
        f"compress {EMBEDDER} --tasks empty --out out/1 --rotate PATH",
        "compress weights PATH --int8 --out out/1",
        f"compress weights {EMBEDDER} --prune wanda --texts PATH --out out/1",
    ),
    "export": (
        "export PATH out/1",
        f"export {EMBEDDER} out/1 --to onnx --texts PATH",
        "export tiny out/1 --adapter PATH",
    ),
    "convert": ("convert PATH out/1",),
    "prune": ("prune PATH out/1 --layers 1", "prune tiny out/1 --vocabulary PATH"),
    "distill": (
        "distill PATH --student tiny --text docs --out out/1",
        f"distill {EMBEDDER} --student PATH --text docs --out out/1",
        f"distill {EMBEDDER} --student tiny --text PATH --out out/1",
    ),
    "merge": ("merge PATH tiny --out out/1", "merge tiny tiny --out out/1 --dev PATH"),
    "probe": ("probe PATH",),
    "base": ("base get smollm2-135m --wheel PATH",),
    "recipe": ("recipe copy PATH",),
}
WRITTEN: dict[str, str] = {
    "quickstart": "quickstart docs --out PATH",
    "adapt": "adapt docs --out PATH",
    "train": "train recipe.yaml --data . --out PATH",
    "sweep": "sweep recipe.yaml --data . --grid stages.one.steps=1,2 --dev pairs.jsonl --out PATH",
    "synthesize": "synthesize --endpoint http://127.0.0.1:9 --model m --examples 1 --out PATH",
    "curate": "curate pairs.jsonl --out PATH",
    "mine": "mine pairs.jsonl --teacher bm25 --out PATH",
    "evaluate": "evaluate bm25 --tasks tasks --out PATH",
    "encode": f"encode {EMBEDDER} texts.jsonl --out PATH",
    "index": f"index docs --model {EMBEDDER} --out PATH",
    "compress": f"compress {EMBEDDER} --tasks empty --out PATH",
    "export": f"export {EMBEDDER} PATH --to onnx",
    "convert": "convert official PATH",
    "prune": "prune tiny PATH --layers 1",
    "distill": f"distill {EMBEDDER} --student tiny --text docs --out PATH",
    "merge": "merge tiny official --out PATH",
    "recipe": "recipe copy tiny --out PATH",
}


def odd_cases(folder: Path) -> list[Case]:
    """Write what else is needed into a folder and return the cases."""
    (folder / "circle").symlink_to("circle")
    return [*names(), *empty_words(), *at_odds(), *limits()]


def names() -> Iterator[Case]:
    """Names of files and folders, for every verb."""
    for verb, lines in READ.items():
        for line in lines:
            for kind, name in NAMES.items():
                late = "--tasks PATH" in line or "--texts PATH" in line or "indices/alone" in line
                yield Case(verb, f"{kind} in {line[:50]}", words(line, name), needs_model=late)
    for verb, line in WRITTEN.items():
        for kind, name in NO_OUTPUT.items():
            yield Case(verb, f"{kind} in {line[:50]}", words(line, name))


def words(line: str, name: str) -> tuple[str, ...]:
    return tuple(word.replace("PATH", name) for word in line.split())


def empty_words() -> Iterator[Case]:
    """What a variable that is not set gives: no path and no name, nor the current folder."""
    for verb, lines in READ.items():
        yield Case(verb, f"empty in {lines[0][:50]}", words(lines[0], ""))
    for verb, line in WRITTEN.items():
        yield Case(verb, f"empty in {line[:50]}", words(line, ""))
    for verb, line in (
        ("quickstart", ("quickstart", "docs", "--device", "")),
        ("adapt", ("adapt", "docs", "--set", "")),
        ("mine", ("mine", "pairs.jsonl", "--teacher", "bm25", "--rule", "")),
        ("curate", ("curate", "pairs.jsonl", "--kind=")),
        ("encode", ("encode", EMBEDDER, "texts.jsonl", "--out", "out/oe", "--id", " ")),
        ("serve", ("serve", EMBEDDER, "--port", "0", "--api-key", "")),
        ("serve", ("serve", EMBEDDER, "--port", "0", "--name", "")),
        ("push", ("push", "tiny", "", "--dry-run")),
        ("merge", ("merge", "tiny", "tiny", "--out", "out/og", "--weights", "")),
        ("catalog", ("catalog", "--paper", "")),
    ):
        yield Case(verb, f"an empty word: {' '.join(line)[:50]}", line)


def at_odds() -> Iterator[Case]:
    """Options that contradict each other, or say twice what can be said once."""
    encode = ("encode", EMBEDDER, "texts.jsonl", "--out", "out/oc")
    for verb, line in (
        (
            "evaluate",
            ("evaluate", "bm25", "--tasks", "tasks", *("--instruction", "a=b") * 2, "--instruction", "a=c"),
        ),
        ("encode", (*encode, "--ray-address", "auto")),
        ("encode", (*encode, "--workers", "2")),
        ("encode", (*encode, "--shard", "1/2", "--engine", "ray")),
        ("encode", (*encode, "--stdin-format", "csv")),
        ("train", ("train", "recipe.yaml", "--out", "out/ot", "--set", "seed=1", "--set", "seed=2")),
        ("export", ("export", EMBEDDER, "out/ox", "--to", "onnx", "--adapter", "tiny")),
        ("export", ("export", EMBEDDER, "out/ox", "--to", "onnx", "--pooling", "mean")),
        ("export", ("export", "tiny", "out/ox", "--int8")),
        ("export", ("export", "tiny", "out/ox", "--min-cosine", "0.9")),
        ("export", ("export", "tiny", "out/ox", "--texts", "pairs.jsonl")),
        ("curate", ("curate", "pairs.jsonl", "--out", "out/oq", "--tokenizer", "tiny")),
        ("curate", ("curate", "pairs.jsonl", "--out", "out/oq", "--top-k", "3")),
        ("curate", ("curate", "pairs.jsonl", "--out", "out/oq", "--against-split", "dev")),
        ("mine", ("mine", "pairs.jsonl", "--teacher", "bm25", "--out", "out/om", "--query-prompt", "q: ")),
        ("mine", ("mine", "pairs.jsonl", "--teacher", "bm25", "--out", "out/om", "--index", "IVF16,Flat")),
        ("mine", ("mine", "pairs.jsonl", "--teacher", "bm25", "--teacher", "bm25", "--out", "out/om")),
        ("merge", ("merge", "tiny", "tiny", "--out", "out/og")),
        ("synthesize", ("synthesize", "--endpoint", "http://127.0.0.1:9", "--model", "m", "--test")),
        ("synthesize", ("synthesize", "--endpoint", "http://h", "--model", "m", "--max-cost", "3")),
        ("distill", ("distill", EMBEDDER, "--text", "docs", "--student", EMBEDDER, "--recipe", "tiny")),
        ("sweep", ("sweep", "recipe.yaml", *("--grid", "stages.one.steps=1,2") * 2, "--dev", "pairs.jsonl")),
        ("search", ("search", "indices/alone", "x", "--filter", "a=1", "--filter", "a")),
    ):
        late = verb in ("export", "evaluate", "merge")
        yield Case(verb, f"at odds: {' '.join(line)[:60]}", line, needs_model=late)


def limits() -> Iterator[Case]:
    """Numbers that no machine holds, or that are one beside what can be meant."""
    most, far = str(2**63 - 1), str(2**63)
    for verb, line in (
        *(
            ("encode", ("encode", EMBEDDER, "texts.jsonl", "--out", "out/ol", "--dim", n))
            for n in (most, far)
        ),
        ("encode", ("encode", EMBEDDER, "texts.jsonl", "--out", "out/ol", "--workers", far)),
        *(("prune", ("prune", "tiny", "out/ol", "--layers", n)) for n in (most, f"1,{far}", "0x1")),
        *(
            ("mine", ("mine", "pairs.jsonl", "--teacher", "bm25", "--memory-gb", n))
            for n in ("1e-9", "5e-324")
        ),
        *(("curate", ("curate", "pairs.jsonl", "--ngram", n)) for n in ("0", "-9223372036854775809")),
        *(("curate", ("curate", "pairs.jsonl", "--near", n)) for n in ("0", "1.0000001", "-0.0")),
        *(
            ("synthesize", ("synthesize", "--endpoint", "http://h", "--model", "m", "--examples", n))
            for n in (far, "1.0")
        ),
        *(
            ("merge", ("merge", "tiny", "tiny", "--out", "out/og", "--weights", n))
            for n in ("1e308,1e308", "1,2,3")
        ),
        *(
            ("compress", ("compress", "weights", EMBEDDER, "--prune", "magnitude", "--sparsity", n))
            for n in ("1e-320", "0:0")
        ),
        *(("search", ("search", "indices/alone", "x", "-k", n)) for n in (far, "+1.5")),
        ("export", ("export", EMBEDDER, "out/ox", "--to", "onnx", "--min-cosine", "nan")),
        ("quickstart", ("quickstart", "docs", "--minutes", "0.4999999")),
        ("sweep", ("sweep", "recipe.yaml", "--grid", "seed=4294967296,1", "--dev", "pairs.jsonl")),
    ):
        late = (
            verb in ("compress", "merge", "export") or "--dim" in line
        )  # their own checks stand beside sums
        yield Case(verb, f"limit: {' '.join(line)[-50:]}", line, needs_model=late)
