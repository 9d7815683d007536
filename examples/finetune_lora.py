"""Fine-tune a decoder on your own pairs with LoRA, and see whether it got better.

    python examples/finetune_lora.py pairs.jsonl --base Qwen/Qwen3-0.6B --steps 500 --out finetuned

A line of pairs.jsonl is {"query": "...", "positives": ["..."]}; "negatives" may be there too. A fifth of the
pairs is held out and becomes a retrieval test set among all documents. The end is a table of the decoder as
it came, the fine-tuned model and BM25; a mark says what is really better or worse, and not by chance.

Cost: the default, 100 steps of the bundled decoder, takes a few minutes on two CPU cores and no network. Run
it again to go on where it stopped.
"""

import argparse
import json
import random
from pathlib import Path

import embedforge
from embedforge.evaluate.terminal import print_scores

INSTRUCTION = "Given a question, retrieve passages that answer it"
RECIPE = f"""
name: finetuned
model:
  pooling: {{kind: mean}}
  adapter: {{rank: 16, alpha: 32}}
contract: {{max_tokens: 256, default_instruction: "{INSTRUCTION}"}}
stages:
  - name: retrieval
    steps: 100
    negatives: 1                # of a line's "negatives", where it has some, beside the batch's documents
    document_max_tokens: 96     # in training only
    learning_rate: 1.0e-3       # for the small bundled decoder; 1e-4 is usual for billions of parameters
    mix:
      sources: [{{path: train.jsonl, instruction: "{INSTRUCTION}"}}]
training: {{precision: float32}}  # bfloat16_autocast on a GPU
"""


def hold_out(pairs: Path, out: Path) -> int:
    """Write train.jsonl, and test/retrieval/held-out in the layout of BEIR; return the training rows."""
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines() if line.strip()]
    random.Random(0).shuffle(rows)
    test, rest = rows[: max(1, len(rows) // 5)], rows[max(1, len(rows) // 5) :]
    tested = {text for row in test for text in row["positives"]}
    train = [row for row in rest if tested.isdisjoint(row["positives"])]
    ids = {text: f"d{number}" for number, text in enumerate({t: 0 for row in rows for t in row["positives"]})}
    folder = out / "test" / "retrieval" / "held-out"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    write(out / "train.jsonl", train)
    write(folder / "corpus.jsonl", [{"_id": name, "text": text} for text, name in ids.items()])
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": row["query"]} for n, row in enumerate(test)])
    judged = [f"q{n}\t{ids[text]}\t1" for n, row in enumerate(test) for text in row["positives"]]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    return len(train)


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("pairs", type=Path)
parser.add_argument("--base", default="embedforge:base", help="a decoder: a folder or a hub id")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--out", type=Path, default=Path("finetuned"))
args = parser.parse_args()

batch = min(16, hold_out(args.pairs, args.out))  # queries a step
(args.out / "recipe.yaml").write_text(RECIPE)
changes = [f"model.base={args.base}", f"stages.0.steps={args.steps}", f"stages.0.batch_queries={batch}"]
recipe = embedforge.load_recipe(str(args.out / "recipe.yaml"), changes)
model = embedforge.train(recipe, args.out / "run", source_folder=args.out, own_test=True, resume=True)

systems = [f"{args.base}@mean", model, "bm25"]  # first the decoder as it came, the mean of its states
scores = args.out / "evaluation"
embedforge.evaluate(systems, args.out / "test", scores, instructions={"Retrieval": INSTRUCTION})
print_scores(scores)
