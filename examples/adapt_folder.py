"""Adapt a folder of documents from Python: text alone, no labels, to a model, an index and a report.

    python examples/adapt_folder.py docs --minutes 10 --out adapted --query "how is a model saved?"

Shows the engine of `embedforge adapt` as a function, and what can be done with what it leaves: the index
answers questions, the model embeds other texts. finetune_lora.py needs pairs and makes its own test set; here
the engine holds out text and questions of the folder, and its table says whether the model got better.

Cost: --minutes, on whatever machine; fewer steps are trained on a slow one. The bundled decoder needs no
network. Run it again to go on where it stopped.
"""

import argparse
from pathlib import Path

import embedforge
from embedforge.prove.run import adapt
from embedforge.search.run import search

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, help="text, Markdown, HTML, PDF or source code")
parser.add_argument("--base", help="a decoder: a folder or a hub id; the bundled one by default")
parser.add_argument("--minutes", type=float, default=10.0)
parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes of the recipe")
parser.add_argument("--query", default="how do I begin?")
parser.add_argument("--out", type=Path, default=Path("adapted"))
args = parser.parse_args()

# Prints a table of before and after on held-out text, with BM25; report.html has the rest.
adapt(args.folder, args.out, base=args.base, overrides=args.set, minutes=args.minutes)

# The passages of the folder that answer a question best.
search(args.out, args.query, k=3)

# The model by itself, on texts that are not in the folder.
model = embedforge.load(args.out / "model")
vectors = model.encode_document(["A first passage.", "A second one, about something else."])
print(f"similarity of two texts: {float(model.similarity(vectors, vectors)[0, 1]):.2f}")
