"""Make LLM2Vec's table at small scale, in docs/results.md: what each of its steps gives the bundled decoder.

    python scripts/llm2vec_table.py --documents FILE.jsonl.gz ... --tasks FOLDER --out runs/llm2vec

The decoder as it came (causal, weighted mean), its mask removed (mean), after MNTP, after MNTP and SimCSE,
all with several seeds, and after SimCSE alone, with the first. Every line of the documents holds a `text`.
The tasks are a folder of datasets (docs/evaluation.md); STS, classification, clustering, retrieval and
reranking are scored. Run again to go on where it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_results import machine
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sections import replace_section
from tables import Variant, difference, evaluated, link_tasks, scores, signed, table, unsigned

from embedforge.documents.sentences import sentences
from embedforge.encode import encode
from embedforge.evaluate.run import Results, versions
from embedforge.model.attention import make_bidirectional, make_causal
from embedforge.model.encoder import EmbeddingModel, embedding_model, load, save
from embedforge.recipe import Recipe, load_recipe
from embedforge.train.run import DONE, stage_folder, train
from embedforge.train.stages import model_after, prepare_model

KINDS = ("sts", "classification", "clustering", "retrieval", "reranking")
Floats = NDArray[np.floating[Any]]
MAX_TOKENS = 128
"""Of a text in the evaluation, for every variant."""
CAUSAL, BIDIRECTIONAL, MNTP, BOTH, SIMCSE = (
    "causal, weighted mean",
    "bidirectional, untrained",
    "+ MNTP",
    "+ MNTP + SimCSE",
    "+ SimCSE alone",
)
STEPS = ((CAUSAL, BIDIRECTIONAL), (BIDIRECTIONAL, MNTP), (MNTP, BOTH), (SIMCSE, BOTH), (CAUSAL, BOTH))
"""Which variant is compared with which."""


def main() -> None:
    """Run what is missing in --out, then rewrite the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=Path, nargs="+", required=True, help="JSONL files of texts")
    parser.add_argument("--tasks", type=Path, required=True, help="folder of datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--characters", type=int, default=30_000_000, help="of the documents to train on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--skip", nargs="*", default=["xquad_cross"], help="datasets to leave out")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="change the recipe")
    parser.add_argument("--results", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--no-evaluation", action="store_true", help="train only")
    args = parser.parse_args()

    write_texts(args.documents, args.out / "data", args.characters)
    found = variants(args.out, args.seeds, args.changes)
    if args.no_evaluation:
        return
    datasets = [path for kind in KINDS for path in sorted((args.tasks / kind).iterdir())]
    tasks = link_tasks(args.out / "tasks", [path for path in datasets if path.name not in args.skip])
    results, rows = evaluated(found, tasks, args.out / "evaluation", max_tokens=MAX_TOKENS)
    recipe = load_recipe("llm2vec-tiny", args.changes)
    replace_section(args.results, "llm2vec", page(results, rows, recipe))
    replace_section(args.results, "llm2vec states", states_page(found, sample_texts(args.tasks)))


def write_texts(files: Sequence[Path], folder: Path, characters: int) -> None:
    """Write the documents, up to so many characters, and their sentences, as the recipe's sources."""
    if (folder / "sentences.jsonl").exists():
        return
    documents, left = [], characters
    for text in read_texts(files):
        documents.append(text)
        left -= len(text)
        if left < 0:
            break
    short = [sentence for text in documents for sentence in sentences(text)]
    random.Random(0).shuffle(short)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("texts", documents), ("sentences", short)):
        lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        partial = folder / f"{name}.partial"
        partial.write_text(lines, encoding="utf-8")
        partial.replace(folder / f"{name}.jsonl")


def read_texts(files: Sequence[Path]) -> Iterator[str]:
    """Yield the `text` of every line."""
    for path in files:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def variants(out: Path, seeds: Sequence[int], changes: Sequence[str]) -> list[Variant]:
    """Build or train every row's models; those that are there stay."""
    causal = ["contract.attention=causal", "model.pooling.kind=weighted_mean"]
    rows = [
        Variant(CAUSAL, (untrained(out / "causal", [*changes, *causal]),)),
        Variant(BIDIRECTIONAL, (untrained(out / "bidirectional", changes),)),
    ]
    both = [trained(out / f"seed-{seed}", seed, changes) for seed in seeds]
    rows.append(Variant(MNTP, tuple(mntp for mntp, _ in both)))
    rows.append(Variant(BOTH, tuple(full for _, full in both)))
    _, alone = trained(out / f"simcse-{seeds[0]}", seeds[0], changes, without_mntp=True)
    return [*rows, Variant(SIMCSE, (alone,))]


def untrained(folder: Path, changes: Sequence[str]) -> str:
    """Save the recipe's model as it is before its first step."""
    if not folder.exists():
        save(prepare_model(load_recipe("llm2vec-tiny", changes)).eval(), folder)
    return str(folder)


def trained(out: Path, seed: int, changes: Sequence[str], *, without_mntp: bool = False) -> tuple[str, str]:
    """Run the recipe; return the models after its first stage and after its last."""
    recipe = load_recipe("llm2vec-tiny", [f"seed={seed}", *changes])
    if without_mntp:
        recipe = recipe.model_copy(update={"stages": recipe.stages[1:]})
    model = train(recipe, out, resume=True, source_folder=out.parent / "data")
    first = out / "after-first"
    if not first.exists():
        save(model_after(recipe, [stage_folder(out, recipe, 0) / DONE]).eval(), first)
    return str(first), str(model)


def page(results: Results, rows: Sequence[Variant], recipe: Recipe) -> str:
    """Return table, differences and what was run, as Markdown."""
    types = {kind: sorted(name for name in results.tasks if name.startswith(f"{kind}/")) for kind in KINDS}
    seeds = max(len(row.models) for row in rows)
    steps = ", ".join(f"{stage.steps} steps of {stage.name}" for stage in recipe.stages)
    head = ["variant", *(f"{kind} ({len(names)})" for kind, names in types.items()), "mean of types"]
    body = []
    for row in rows:
        cells = [scores(results, row, names) for names in types.values()]
        body.append([row.name, *map(unsigned, cells), f"{np.mean([cell.mean for cell in cells]):.3f}"])
    by_name = {row.name: row for row in rows}
    changes = [
        [
            f"{before} → {after}",
            *(
                signed(difference(results, by_name[before], by_name[after], names))
                for names in types.values()
            ),
        ]
        for before, after in STEPS
    ]
    lines = [
        f"{sum(map(len, types.values()))} test sets, texts cut to {MAX_TOKENS} tokens; {steps}; {seeds} "
        f"seeds, SimCSE alone one. {machine(versions())}",
        "",
        *table(head, body),
        "",
        *table(["step", *types], changes),
    ]
    return "\n".join(lines)


def sample_texts(tasks: Path) -> list[str]:
    """Return the texts of all STS datasets' test parts: short ones, of many kinds."""
    files = sorted(path for path in (tasks / "sts").glob("*/test.jsonl*"))
    rows = []
    for path in files:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines]
    return sorted({row[key] for row in rows for key in ("sentence1", "sentence2")})


def states_page(rows: Sequence[Variant], texts: Sequence[str]) -> str:
    """Return what the states and the vectors of the first seed's models look like, as Markdown."""
    lines = [
        f"{len(texts):,} sentences. *Mask*: mean cosine of a token's last state with and without the causal "
        "mask. *Any two*: mean cosine of the vectors of two random texts. *Length*: Spearman correlation of "
        "that cosine with how alike two texts are in length.",
        "",
        "| variant | mask | any two | length |",
        "|---|---|---|---|",
    ]
    for row in rows:
        model = embedding_model(load(row.models[0]))
        vectors = encode(model, texts, bfloat16=False)
        cosines, lengths = random_pairs(vectors, [len(text) for text in texts])
        figures = (agreement(model, texts[:500]), cosines.mean(), spearmanr(cosines, lengths).statistic)
        lines.append(f"| {row.name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    return "\n".join(lines)


def random_pairs(vectors: Floats, lengths: Sequence[int], pairs: int = 20_000) -> tuple[Floats, Floats]:
    """Return the cosine of random pairs, and minus the difference of the logarithms of their lengths."""
    chance = np.random.default_rng(0)
    one, other = chance.integers(len(vectors), size=(2, pairs))
    one, other = one[one != other], other[one != other]
    logs = np.log(np.asarray(lengths, dtype=np.float64))
    return (vectors[one] * vectors[other]).sum(axis=1), -np.abs(logs[one] - logs[other])


@torch.no_grad()
def agreement(model: EmbeddingModel, texts: Sequence[str]) -> float:
    """Return the mean cosine of tokens' last states with and without the causal mask."""
    batch = model.renderer.batch(texts)
    states = []
    for turn in (make_causal, make_bidirectional):
        turn(model.decoder)
        states.append(model.token_states(batch["input_ids"], batch["attention_mask"]))
    cosines = torch.nn.functional.cosine_similarity(*states, dim=-1)
    return float(cosines[batch["attention_mask"].bool()].mean())


if __name__ == "__main__":
    main()
