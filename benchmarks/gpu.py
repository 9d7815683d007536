"""One GPU in eight minutes: encoding and training of 0.6B and 7B decoders, tokens a second and MFU.

    python benchmarks/gpu.py                      # on an H100 or H200; what does not fit the time is left out
    python benchmarks/gpu.py --tiny --device cpu  # the same script on tiny shapes, to see that it runs

Weights are random, for speed does not depend on them; shapes are those of Qwen3-0.6B and Mistral-7B. Model
FLOP utilisation counts what the model needs (2 FLOPs a weight and token forward, 2 for the gradient of
activations, 2 for that of a trained weight, and attention's products over real tokens) and nothing that is
computed twice: neither checkpointing, nor GradCache's first pass, nor padding. The peer is
sentence-transformers' own modules and losses, given the same tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, table
from torch import Tensor, nn
from transformers import AutoModel, MistralConfig, PreTrainedConfig, Qwen3Config

from embedforge.encode import encode_rendered
from embedforge.model.adapter import add_lora
from embedforge.model.attention import make_bidirectional
from embedforge.model.decoder import read_tokenizer
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.folder import find_folder
from embedforge.model.latent import LatentAttention
from embedforge.model.packing import joined, micro_batches_of
from embedforge.model.pooling import build_pooler
from embedforge.model.short_attention import use_short_attention
from embedforge.objectives.contrastive import info_nce
from embedforge.objectives.gradcache import backward
from embedforge.text.contract import Contract
from embedforge.text.render import Rendered
from embedforge.train.optimizer import build_optimizer, parameter_groups

PEAK = 989e12
"""bfloat16 of an H100 or H200 (SXM), without sparsity, by its data sheet."""
Row = dict[str, Any]
Part = Callable[[argparse.Namespace], list[Row]]


def shapes(tiny: bool) -> dict[str, PreTrainedConfig]:
    """Return the configurations by name; tiny ones have the same parts."""
    common = {"tie_word_embeddings": True, "use_cache": False, "pad_token_id": 2}
    if tiny:
        small = {"vocab_size": 16384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, **common}
        return {"0.6B": Qwen3Config(**small), "7B": MistralConfig(**small, sliding_window=None)}
    return {
        "0.6B": Qwen3Config(
            vocab_size=151_669,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            **common,
        ),
        "7B": MistralConfig(sliding_window=None, **common),
    }


def model_of(shape: str, asked: argparse.Namespace, lora: bool = False) -> EmbeddingModel:
    """Make a bidirectional embedding model of random bfloat16 weights, on the device."""
    torch.manual_seed(0)
    with torch.device(asked.device):
        decoder = AutoModel.from_config(shapes(asked.tiny)[shape], dtype=torch.bfloat16)
    make_bidirectional(decoder)
    use_short_attention(decoder)
    if lora:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
        decoder = add_lora(decoder, rank=16, alpha=32, dropout=0.0)
    tokenizer = read_tokenizer(find_folder("embedforge:base"))
    contract = Contract(pooling="mean", max_tokens=asked.most)
    pooler = build_pooler("mean", shapes(asked.tiny)[shape].hidden_size)
    model = EmbeddingModel(decoder, pooler, tokenizer, contract)
    return model.to(asked.device)


def texts_of(count: int, most: int, seed: int = 0, least: int = 8) -> list[Rendered]:
    """Draw texts of any tokens whose lengths are those of passages: median 110, cut at `most`."""
    draw = random.Random(seed)
    lengths = [min(most, max(least, int(draw.lognormvariate(4.7, 0.7)))) for _ in range(count)]
    return [Rendered([draw.randrange(3, 16_000) for _ in range(n)], [1] * n) for n in lengths]


def flops_a_token(model: EmbeddingModel, lengths: Sequence[int], *, train: bool) -> float:
    """Return what the model needs for a token of such texts; see the module's docstring."""
    base: Any = model.decoder
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    frozen = trained = 0
    for name, weight in model.decoder.named_parameters():
        if weight.ndim == 2 and "embed_tokens" not in name:
            frozen, trained = (
                (frozen, trained + weight.numel())
                if weight.requires_grad
                else (frozen + weight.numel(), trained)
            )
    config = base.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    mean = sum(length**2 for length in lengths) / sum(lengths)  # of the text that a token stands in
    attention = 4 * mean * width * config.num_hidden_layers
    if not train:
        return 2 * (frozen + trained) + attention
    return 4 * frozen + 6 * trained + 3 * attention


class Clock:
    """Seconds of a pass, the device's work included, and its peak of memory."""

    def __init__(self, device: str) -> None:
        self.device = device

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def of(self, work: Callable[[], object], rounds: int) -> tuple[float, float]:
        """Return the median seconds after one pass to warm up, and the peak in GB (0 on a CPU).

        Without rounds the first pass is the figure: of a minute's work little is warming up.
        """
        if rounds:
            work()
        self.wait()
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(max(1, rounds)):
            began = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device != "cpu" else 0.0
        return statistics.median(seconds), peak


def row_of(what: str, tokens: int, seconds: float, each: float, asked: argparse.Namespace, gb: float) -> Row:
    return {
        "work": what,
        "tokens/s": tokens / seconds,
        "MFU": f"{tokens / seconds * each / asked.peak:.1%}",
        "seconds": seconds,
        "GB": gb,
    }


def embedder(model: EmbeddingModel, device: str) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda batch: model(**{name: value.to(device, non_blocking=True) for name, value in batch.items()})


def packed_batches(
    model: EmbeddingModel, texts: Sequence[Rendered], budget: int
) -> tuple[list[dict[str, Tensor]], list[list[int]]]:
    lengths = [len(text.input_ids) for text in texts]
    batches, rows = [], []
    for rectangles in micro_batches_of(lengths, budget, part_cost=0):
        parts = [model.renderer.pad([texts[row] for row in some]) for some in rectangles]
        batches.append(joined(parts))
        rows.append([row for some in rectangles for row in some])
    return batches, rows


# --- the parts ---------------------------------------------------------------------------------------


def same_vectors(asked: argparse.Namespace) -> list[Row]:
    """Packed texts (varlen attention, where there is one) against one padded batch through sdpa."""
    model = model_of("0.6B", asked).eval()
    texts = texts_of(24, asked.most, seed=3)
    with torch.inference_mode():
        batches, rows = packed_batches(model, texts, asked.budget)
        packed = torch.cat([embedder(model, asked.device)(batch) for batch in batches])
        padded = embedder(model, asked.device)(model.renderer.pad(texts))
    order = [row for some in rows for row in some]
    cosines = nn.functional.cosine_similarity(packed.float(), padded.float()[order])
    worst = float(cosines.min())
    if worst < 0.999:
        sys.exit(f"packed and padded vectors differ: cosine {worst:.5f}")
    return [{"work": "packed against padded, least cosine", "tokens/s": worst}]


def encoding(shape: str) -> Part:
    def part(asked: argparse.Namespace) -> list[Row]:
        model = model_of(shape, asked).eval()
        texts = texts_of(asked.texts, asked.most)
        lengths = [len(text.input_ids) for text in texts]
        each = flops_a_token(model, lengths, train=False)
        batches, _ = packed_batches(model, texts, asked.budget)
        embed, clock = embedder(model, asked.device), Clock(asked.device)

        @torch.inference_mode()
        def packed() -> None:
            for batch in batches:
                embed(batch)

        def as_it_is() -> None:
            encode_rendered(model, texts, asked.budget, bfloat16=False)

        rows = []
        for name, work in (("packed", packed), ("encode()", as_it_is)):
            seconds, gb = clock.of(work, asked.rounds)
            rows.append(row_of(f"encode {shape}, {name}", sum(lengths), seconds, each, asked, gb))
        return rows

    return part


def training(shape: str, *, lora: bool, queries: int, fixed: int = 0) -> Part:
    """Train by GradCache; `fixed` gives every document so many tokens."""

    def part(asked: argparse.Namespace) -> list[Row]:
        model = model_of(shape, asked, lora=lora).train()
        count = max(2, queries // 32) if asked.tiny else queries
        documents = texts_of(8 * count, fixed or asked.most, seed=1, least=fixed or 8)
        texts = texts_of(count, 64, seed=2) + documents
        lengths = [len(text.input_ids) for text in texts]
        each = flops_a_token(model, lengths, train=True)
        batches, rows = packed_batches(model, texts, asked.budget)
        positive = torch.arange(0, 8 * count, 8, device=asked.device)
        candidates = torch.ones(count, 8 * count, dtype=torch.bool, device=asked.device)
        groups = parameter_groups(model, learning_rate=1e-5, weight_decay=0.01)
        optimizer = build_optimizer(groups, fp32_master=True)

        def loss(vectors: Tensor) -> Tensor:
            return info_nce(vectors[:count], vectors[count:], positive, candidates, 0.05).mean()

        def step() -> None:
            held = not lora and sum(lengths) <= asked.held
            value, _ = backward(embedder(model, asked.device), batches, rows, loss, one_pass=held)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            assert bool(torch.isfinite(value))

        seconds, gb = Clock(asked.device).of(step, 0 if fixed else asked.rounds)
        name = f"train {shape}, {'LoRA, checkpointing' if lora else 'all weights'}, {count} x (1+7)"
        return [row_of(f"{name}{f' x {fixed}' if fixed else ''}", sum(lengths), seconds, each, asked, gb)]

    return part


def latent(asked: argparse.Namespace) -> list[Row]:
    """The latent block at the width of a 7B decoder: official arrangement, shared keys and values, folded."""
    from latent import FORMS, forms

    width, tokens = (64, 512) if asked.tiny else (4096, 16_384)
    block, every_form = forms(width, asked.device, "bfloat16")
    assert isinstance(block, LatentAttention)
    states = torch.randn(tokens // 128, 128, width, device=asked.device, dtype=torch.bfloat16)
    rows = []
    for train in (True, False):
        block.train(train)
        for form in FORMS:

            def work(form: str = form, train: bool = train) -> None:
                with torch.set_grad_enabled(train):
                    found = every_form[form](states.detach().requires_grad_(train))
                    if train:
                        found.float().square().mean().backward()
                        block.zero_grad()

            seconds, gb = Clock(asked.device).of(work, asked.rounds)
            name = f"latent {width}, {form}, {'training' if train else 'inference'}"
            rows.append({"work": name, "tokens/s": tokens / seconds, "seconds": seconds, "GB": gb})
    return rows


@contextlib.contextmanager
def peer_model(asked: argparse.Namespace) -> Iterator[tuple[Any, EmbeddingModel]]:
    """Give the 0.6B decoder in sentence-transformers' modules, and in ours, which counts FLOPs and pads."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    ours = model_of("0.6B", asked)
    with tempfile.TemporaryDirectory() as folder:
        ours.decoder.save_pretrained(folder)
        ours.tokenizer.save_pretrained(folder)
        options = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        body = Transformer(folder, max_seq_length=asked.most, model_kwargs=options)
        make_bidirectional(body.model)
        width = ours.decoder.config.hidden_size
        modules = [body, Pooling(width, "mean"), Normalize()]
        yield SentenceTransformer(modules=modules, device=asked.device), ours


def features(ours: EmbeddingModel, texts: Sequence[Rendered], device: str) -> dict[str, Tensor]:
    batch = ours.renderer.pad(texts)
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


def peer_encoding(asked: argparse.Namespace) -> list[Row]:
    """sentence-transformers on the texts of `encoding("0.6B")`: sorted by length, at several batch sizes."""
    texts = sorted(texts_of(asked.texts, asked.most), key=lambda text: -len(text.input_ids))
    lengths = [len(text.input_ids) for text in texts]
    rows = []
    with peer_model(asked) as (model, ours):
        model.eval()
        each = flops_a_token(ours, lengths, train=False)
        for size in (8, 24) if asked.tiny else (32, 64, 128, 256):
            batches = [features(ours, texts[at : at + size], "cpu") for at in range(0, len(texts), size)]

            @torch.inference_mode()
            def work(batches: list[dict[str, Tensor]] = batches) -> None:
                for batch in batches:
                    model({name: value.to(asked.device, non_blocking=True) for name, value in batch.items()})

            seconds, gb = Clock(asked.device).of(work, asked.rounds)
            name = f"encode 0.6B, sentence-transformers, batch {size}"
            rows.append(row_of(name, sum(lengths), seconds, each, asked, gb))
    return rows


def peer_training(asked: argparse.Namespace) -> list[Row]:
    """sentence-transformers' cached loss on the texts of the 0.6B training, in pure bfloat16."""
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    count = 2 if asked.tiny else 64
    documents = texts_of(8 * count, asked.most, seed=1)
    queries = texts_of(count, 64, seed=2)
    lengths = [len(text.input_ids) for text in queries + documents]
    rows = []
    with peer_model(asked) as (model, ours):
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
        columns = [queries, *(documents[place::8] for place in range(8))]
        batch = [features(ours, column, asked.device) for column in columns]
        for size in (8,) if asked.tiny else (32, 128):
            loss = CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=size)

            def step(loss: Any = loss) -> None:
                loss([dict(column) for column in batch], torch.zeros(count)).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

            seconds, gb = Clock(asked.device).of(step, asked.rounds)
            each = flops_a_token(ours, lengths, train=True)
            name = f"train 0.6B, sentence-transformers, cached {size}, {count} x (1+7)"
            rows.append(row_of(name, sum(lengths), seconds, each, asked, gb))
    return rows


PARTS: dict[str, tuple[Part, float]] = {
    "same vectors": (same_vectors, 20),
    "encode 0.6B": (encoding("0.6B"), 40),
    "peer's encoding": (peer_encoding, 40),
    "train 0.6B": (training("0.6B", lora=False, queries=64), 40),
    "peer's training": (peer_training, 50),
    "latent": (latent, 30),
    "encode 7B": (encoding("7B"), 60),
    "gradcache 7B": (training("7B", lora=True, queries=128, fixed=512), 200),
}
"""What is measured, in this order, and the seconds that a part may take on an H100."""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="*", choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=float, default=PEAK, help="FLOP/s of the device in bfloat16")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    asked.most, asked.texts = (48, 24) if asked.tiny else (512, 2048)
    asked.budget, asked.held = (512, 4096) if asked.tiny else (32_768, 131_072)
    rows: list[Row] = []
    began = time.monotonic()
    for name, (part, needed) in PARTS.items():
        if asked.only and name not in asked.only:
            continue
        left = 60 * asked.minutes - (time.monotonic() - began)
        if not asked.tiny and needed > left:
            rows.append({"work": f"{name}: left out, {left:.0f} s were left and it takes {needed:.0f}"})
            continue
        try:
            rows += part(asked)
        except torch.OutOfMemoryError as error:
            rows.append({"work": f"{name}: out of memory, {str(error)[:100]}"})
        if asked.device != "cpu":
            torch.cuda.empty_cache()
        write(rows, asked)
    print(
        table(
            [{key: row.get(key, "") for key in ("work", "tokens/s", "MFU", "seconds", "GB")} for row in rows]
        )
    )
    return rows


def write(rows: Sequence[Row], asked: argparse.Namespace) -> None:
    """Write what is known so far: a run that is cut off keeps its parts."""
    asked.out.mkdir(parents=True, exist_ok=True)
    about = machine() | {"device": asked.device}
    with contextlib.suppress(RuntimeError, AssertionError):
        about["gpu"] = torch.cuda.get_device_name()
    document = {"machine": about, "rows": rows}
    (asked.out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
