"""Measure the decoder that embedforge ships on held-out text, and write its model card.

The decoder, a unigram model and a 5-gram model (`kneser_ney.py`) predict the same held-out tokens: the
validation file that `pretrain_base.py` tokenizes but never trains on. The n-grams are counted on the very
windows of text that the decoder saw, in the order in which the trainer drew them. The card is
`base_card.md` with the numbers filled in.

    python scripts/evaluate_base.py --data DATA --work runs/base \\
        --tokens-seen 61440000 --steps 7500 --cooldown-steps 1000

A few minutes and 4 GB of memory on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from kneser_ney import kneser_ney
from pretrain_base import Chunks, read_texts
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from embedforge.files import write_text
from embedforge.model.decoder import read_decoder

SCRIPTS = Path(__file__).resolve().parent
BASE = SCRIPTS.parent / "src" / "embedforge" / "base"
NGRAM = 5


class Source(NamedTuple):
    """One row of the card's data table; `prefixes` are what its records' `source` begins with."""

    name: str
    prefixes: tuple[str, ...]
    origin: str
    licence: str


SOURCES = [
    Source(
        "Wikipedia",
        ("wikipedia",),
        "English Wikipedia of 2015, articles without markup (GitHub jason-feng/wikiVisual at 1c0fac9)",
        "CC BY-SA 3.0",
    ),
    Source(
        "Books",
        ("gutenberg",),
        "Project Gutenberg in pieces of about 20,000 characters (collection by S. Lahiri; GitHub"
        " LuEE-C/FewShotAuthorClassificationMetaLearning at 4c84f81)",
        "public domain in the USA",
    ),
    Source(
        "Technical documents",
        ("python-peps", "rust-lang-rfcs", "swiftlang-swift-evolution", "ethereum-EIPs"),
        "GitHub python/peps at ba4deeb, rust-lang/rfcs at 354518a, swiftlang/swift-evolution at 0105e13,"
        " ethereum/EIPs at f767a1e",
        "PEPs public domain or CC0 (36 old ones state nothing), Rust RFCs MIT or Apache-2.0 (relicensing"
        " under way), Swift Evolution Apache-2.0, EIPs CC0",
    ),
    Source(
        "Speeches",
        ("us-state_union", "us-inaugural"),
        "State of the Union and inaugural addresses of US presidents (GitHub nltk/nltk_data at 5db857e)",
        "public domain",
    ),
]


class Score(NamedTuple):
    """Predictions of some tokens: mean loss in nats a token, and bits a byte of the text they stand for."""

    loss: float
    bits: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


def log(message: str, start: float = time.monotonic()) -> None:
    """Print with the seconds since the script began."""
    print(f"[{time.monotonic() - start:4.0f} s] {message}", flush=True)


def windows_seen(total: int, seen: int) -> np.ndarray:
    """Mark the windows of the training stream that the trainer drew first; bool [total].

    The sampler is the one that `transformers.Trainer` shuffles with, and `pretrain_base.py` leaves its seed
    at 0. Resuming a run skips what was drawn, so the order holds over restarts.
    """
    marks = np.zeros(total, dtype=bool)
    marks[list(itertools.islice(SeedableRandomSampler(range(total), data_seed=0), seen))] = True
    return marks


def decoder_nats(model: PreTrainedModel, rows: Chunks, windows: int, batch: int) -> np.ndarray:
    """Negative log-likelihood of every target token of the first windows; float32 [windows * length]."""
    device = next(model.parameters()).device
    head = model.get_input_embeddings().weight  # Tied to the output; [V, H].
    nats = np.empty((windows, rows.length), dtype=np.float32)
    for start in range(0, windows, batch):
        examples = [rows[i] for i in range(start, min(start + batch, windows))]
        ids = torch.stack([example["input_ids"] for example in examples]).to(device)
        targets = torch.stack([example["targets"] for example in examples]).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            hidden = model(input_ids=ids, use_cache=False).last_hidden_state
            logits = (hidden @ head.T).flatten(0, 1).float()
            losses = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none")
        nats[start : start + batch] = losses.view_as(targets).cpu().numpy()
        if start % (50 * batch) == 0:
            log(f"decoder: {start:,} of {windows:,} windows")
    return nats.ravel()


def unigram_nats(train: Chunks, marks: np.ndarray, targets: np.ndarray, vocabulary: int) -> np.ndarray:
    """The same for each token's own frequency, one added to every count; float64 [tokens]."""
    shown = np.repeat(marks, train.length)
    counts = np.bincount(train.stream[1 : len(shown) + 1][shown], minlength=vocabulary) + 1
    nats: np.ndarray = -np.log(counts / counts.sum())[targets]
    return nats


def ngram_nats(
    train: Chunks, marks: np.ndarray, valid: np.ndarray, tokens: int, vocabulary: int
) -> np.ndarray:
    """The same for the n-grams, of `valid[1 : tokens + 1]` after the tokens before; float64 [tokens].

    An n-gram is counted where both its first token and its last target lie in windows that were seen.
    """
    shown = np.repeat(marks, train.length)
    usable = shown[: 2 - NGRAM] & shown[NGRAM - 2 :]
    padded = np.concatenate([np.full(NGRAM - 2, valid[-1]), valid[: tokens + 1]])  # `</s>` before the first.
    queries = np.lib.stride_tricks.sliding_window_view(padded, NGRAM)
    nats: np.ndarray = -np.log(kneser_ney(train.stream, usable, queries, vocabulary))
    return nats


def source_name(source: str) -> str:
    """The data table's name for a record's `source`, such as "python-peps:pep-0001"."""
    for row in SOURCES:
        if source.split(":")[0] in row.prefixes:
            return row.name
    raise SystemExit(f"source '{source}' is none of {[p for row in SOURCES for p in row.prefixes]}")


def byte_lengths(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """How many bytes of text each id stands for; int64 [vocabulary]. Special tokens stand for none.

    A byte-level BPE writes each byte as one character of its alphabet.
    """
    special = set(tokenizer.all_special_tokens)
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return np.array([0 if piece in special else len(piece) for piece in pieces])


def held_out(path: Path, valid: np.ndarray, sizes: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The name of each document's source, and the document [tokens] that each held-out token belongs to.

    Stops unless the tokens spell the same documents as the file, byte for byte in length.
    """
    ends = valid == valid[-1]
    document = np.cumsum(ends) - ends
    records = list(read_texts(path))
    lengths = [len(text.encode()) for text, _ in records]
    if np.bincount(document, weights=sizes[valid]).tolist() != lengths:
        raise SystemExit(f"{path}: not the text that --work tokenized; give the --data of pretrain_base.py")
    return [source_name(source) for _, source in records], document


def score(nats: np.ndarray, sizes: np.ndarray) -> Score:
    """Summarise losses [tokens] of tokens that stand for `sizes` bytes [tokens]."""
    return Score(
        float(nats.mean(dtype=np.float64)), float(nats.sum(dtype=np.float64) / math.log(2) / sizes.sum())
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; columns that begin with a figure stand right."""
    rule = ["---:" if rows[0][column][:1].isdigit() else "---" for column in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def results_table(nats: dict[str, np.ndarray], sizes: np.ndarray) -> str:
    """Loss, perplexity and bits a byte of each model on all the tokens."""
    scores = {model: score(losses, sizes) for model, losses in nats.items()}
    rows = [
        [model, f"{result.loss:.3f}", f"{result.perplexity:,.1f}", f"{result.bits:.3f}"]
        for model, result in scores.items()
    ]
    return table(["model", "loss", "perplexity", "bits a byte"], rows)


def sources_table(
    nats: dict[str, np.ndarray], sizes: np.ndarray, sources: list[str], document: np.ndarray
) -> str:
    """Perplexity of each model, and bits a byte of the decoder, on each source's tokens."""
    rows = []
    for name in sorted({sources[i] for i in np.unique(document)}):
        here = np.array([source == name for source in sources])[document]
        scores = [score(losses[here], sizes[here]) for losses in nats.values()]
        counts = [f"{len(np.unique(document[here])):,}", f"{here.sum():,}"]
        rows.append([name, *counts, *(f"{s.perplexity:,.1f}" for s in scores), f"{scores[0].bits:.3f}"])
    return table(["text", "documents", "tokens", *nats, f"{next(iter(nats))}, bits a byte"], rows)


def data_table(shards: list[Path]) -> str:
    """Documents and megabytes of each source in the training shards, with origin and licence."""
    documents = dict.fromkeys((row.name for row in SOURCES), 0)
    size = documents.copy()
    for text, source in itertools.chain.from_iterable(map(read_texts, shards)):
        documents[source_name(source)] += 1
        size[source_name(source)] += len(text.encode())
    rows = [
        [row.name, f"{documents[row.name]:,}", f"{size[row.name] / 1e6:.1f} MB", row.licence, row.origin]
        for row in SOURCES
    ]
    return table(["text", "documents", "size", "licence", "origin"], rows)


def card(model: PreTrainedModel, numbers: dict[str, str]) -> str:
    """Fill in `base_card.md` from the model and from what was measured."""
    config = model.config
    embedding = config.vocab_size * config.hidden_size
    return Template((SCRIPTS / "base_card.md").read_text(encoding="utf-8")).substitute(
        numbers,
        architecture=config.architectures[0],
        parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}",
        embedding=f"{embedding / 1e6:.1f}",
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate=f"{config.intermediate_size:,}",
        vocabulary=f"{config.vocab_size:,}",
        positions=f"{config.max_position_embeddings:,}",
        context=NGRAM - 1,
        torch=torch.__version__.split("+")[0],
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of train-*.jsonl.gz and valid.jsonl.gz"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="pretrain_base.py's folder, for tokens/*.npy"
    )
    parser.add_argument(
        "--model", type=Path, default=BASE, help="decoder to measure (default: the bundled one)"
    )
    parser.add_argument("--tokens-seen", type=int, required=True, help="how many tokens it was trained on")
    parser.add_argument("--steps", type=int, required=True, help="in how many steps")
    parser.add_argument("--cooldown-steps", type=int, default=1500, help="as in pre-training, for the card")
    parser.add_argument(
        "--ngram-tokens", type=int, help="count n-grams on at most so many (default: all seen)"
    )
    parser.add_argument("--valid-tokens", type=int, help="measure on at most so many (default: all held out)")
    parser.add_argument("--length", type=int, default=256, help="tokens a window, as in pre-training")
    parser.add_argument("--batch", type=int, default=8, help="windows at a time")
    parser.add_argument("--out", type=Path, default=BASE / "README.md")
    args = parser.parse_args()
    if args.tokens_seen % (args.steps * args.length):
        parser.error(
            f"{args.tokens_seen} tokens are no whole number of {args.length}-token windows in each of"
            f" {args.steps} steps: check --tokens-seen, --steps and --length"
        )
    return args


def main() -> None:
    args = arguments()
    shards = sorted(args.data.glob("train-*.jsonl.gz"))
    train = Chunks(sorted((args.work / "tokens").glob("train-*.npy")), args.length)
    valid = Chunks([args.work / "tokens" / "valid.npy"], args.length)
    sizes = byte_lengths(PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer"))
    sources, document = held_out(args.data / "valid.jsonl.gz", valid.stream, sizes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = read_decoder(args.model, dtype=torch.float32).to(device)
    vocabulary = model.config.vocab_size

    windows = min(len(valid), (args.valid_tokens or len(valid.stream)) // args.length)
    measured = slice(1, windows * args.length + 1)
    targets = valid.stream[measured]
    nats = {"decoder": decoder_nats(model, valid, windows, args.batch)}
    counted = min(args.tokens_seen, args.ngram_tokens or args.tokens_seen) // args.length
    log(f"n-grams: counting {counted * args.length:,} tokens")
    marks = windows_seen(len(train), counted)
    nats["unigram"] = unigram_nats(train, marks, targets, vocabulary)
    nats[f"{NGRAM}-gram"] = ngram_nats(train, marks, valid.stream, len(targets), vocabulary)

    log("model card: reading the training text")
    document, sizes = document[measured], sizes[targets]
    numbers = {
        "results": results_table(nats, sizes),
        "sources": sources_table(nats, sizes, sources, document),
        "data": data_table(shards),
        "held_out": f"{len(np.unique(document)):,}",
        "held_out_tokens": f"{len(targets):,}",
        "counted": f"{counted * args.length / 1e6:.1f}",
        "seen": f"{args.tokens_seen / 1e6:.1f}",
        "available": f"{len(train) * args.length / 1e6:.1f}",
        "steps": str(args.steps),
        "batch": str(args.tokens_seen // args.steps // args.length),
        "cooldown": str(args.cooldown_steps),
        "length": str(args.length),
        "tokens_seen": str(args.tokens_seen),
        "device": device.upper(),
    }
    write_text(args.out, card(model, numbers))
    print(numbers["results"], numbers["sources"], sep="\n\n")
    log(f"wrote {args.out}")


if __name__ == "__main__":
    main()
