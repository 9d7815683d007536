"""Pre-train the small decoder that embedforge ships (`embedforge:base`).

Three steps, each kept in the work folder and skipped when its output is already there:

1. `tokenizer/`      a byte-level BPE of 16,384 entries (`tokenizers`);
2. `tokens/*.npy`    the texts as one stream of uint16 ids, `</s>` between documents;
3. `checkpoints/`    a causal language model (`transformers.MistralForCausalLM`, `transformers.Trainer`).

Run the same command again to resume. The learning rate is constant until `--cooldown-steps` before
`--max-steps`, so a run may be ended early by starting it again with a smaller `--max-steps`.

    python scripts/pretrain_base.py --data DATA --work runs/base --max-steps 7500 --cooldown-steps 1000
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from embedforge.runtime import keep_freed_memory

SPECIAL_TOKENS = ["<s>", "</s>", "<pad>", "<mask>"]
# Words split at case changes and underscores, so that prose and identifiers share their pieces:
# "readHTTPLine" and "read_http_line" both come apart into words.
WORDS = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{Lu}?[\p{Ll}\p{M}]+| ?\p{Lu}+(?!\p{Ll})| ?[\p{L}\p{M}]+"
    r"| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (text, source) of every record of a `.jsonl.gz` file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield record["text"], record["source"]


def tokenizer_sample(shards: list[Path]) -> Iterator[str]:
    """A sixth of the documents, chosen by hash."""
    for shard in shards:
        for text, source in read_texts(shard):
            if zlib.crc32(source.encode() + text[:64].encode()) % 6 == 0:
                yield text


def train_tokenizer(shards: list[Path], folder: Path, vocabulary: int) -> None:
    """Train the byte-level BPE and save it as a fast tokenizer that adds BOS and EOS by itself never."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(tokenizer_sample(shards), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def tokenize(path: Path, tokenizer: Tokenizer, out: Path, eos: int) -> None:
    """Write a shard's ids, `</s>` after each document, as one uint16 array."""
    texts = [text for text, _ in read_texts(path)]
    pieces: list[np.ndarray] = []
    for start in range(0, len(texts), 256):
        encodings = tokenizer.encode_batch(texts[start : start + 256], add_special_tokens=False)
        pieces += [np.array([*encoding.ids, eos], dtype=np.uint16) for encoding in encodings]
    partial = out.with_suffix(".partial.npy")
    np.save(partial, np.concatenate(pieces))
    partial.rename(out)


class Chunks(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Fixed-length windows over the token stream; window i is always the same text."""

    def __init__(self, files: list[Path], length: int) -> None:
        self.stream = np.concatenate([np.load(file) for file in files])
        self.length = length

    def __len__(self) -> int:
        return (len(self.stream) - 1) // self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = index * self.length
        ids = torch.from_numpy(self.stream[start : start + self.length + 1].astype(np.int64))
        return {"input_ids": ids[:-1], "targets": ids[1:]}


@torch.compile(dynamic=False, disable=os.environ.get("TORCHDYNAMO_DISABLE") == "1")
def softmax_gradient(
    logits: torch.Tensor, targets: torch.Tensor, tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [rows, V] -> summed cross-entropy (fp32) and the probabilities / tokens, in one pass."""
    scores = logits.float()
    normaliser = scores.logsumexp(dim=1, keepdim=True)
    loss = normaliser.squeeze(1) - scores.gather(1, targets[:, None]).squeeze(1)
    return loss.sum(), ((scores - normaliser).exp() / tokens).to(logits.dtype)


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T` without ever holding all the logits.

    The gradient is made in the forward pass, chunk by chunk: the 16k softmax is the widest tensor
    of a small model by far, and on CPU its memory traffic costs more than its arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """hidden [tokens, H] bf16, weight [V, H], targets [tokens] -> scalar fp32."""
        table = weight.to(hidden.dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(hidden), 1024):
            rows = slice(start, start + 1024)
            loss, gradient = softmax_gradient(hidden[rows] @ table.T, targets[rows], len(hidden))
            gradient[torch.arange(len(gradient), device=gradient.device), targets[rows]] -= 1 / len(hidden)
            total += loss
            grad_hidden[rows] = gradient @ table
            grad_weight += gradient.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0].to(grad_hidden.dtype), grad_weight * grads[0], None


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the layers, AdamW for embeddings and norms, as one optimizer."""

    def __init__(self, model: torch.nn.Module, lr: float, weight_decay: float) -> None:
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw)
        super().__init__([{"params": matrices}, {"params": others}], {"lr": lr})
        # The scheduler moves these groups' lr; they are the very dicts that the two parts read.
        self.param_groups = [*muon.param_groups, *adamw.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class CausalTrainer(Trainer):
    """`transformers.Trainer` with the chunked loss and the two-part optimizer."""

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer = MuonWithAdamW(self.model, self.args.learning_rate, self.args.weight_decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        warmup, cooldown = 100, int(self.args.lr_scheduler_kwargs["cooldown_steps"])

        def scale(step: int) -> float:
            return min(1.0, (step + 1) / warmup, max(0.0, (num_training_steps - step) / cooldown))

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, scale)
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        hidden = model(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
        loss = LinearCrossEntropy.apply(
            hidden.flatten(0, 1).to(torch.bfloat16), self.lm_weight(), inputs["targets"].flatten()
        )
        return (loss, None) if return_outputs else loss

    def lm_weight(self) -> torch.Tensor:
        """The tied embedding table [V, H]."""
        return self.model.get_input_embeddings().weight

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of train-*.jsonl.gz and valid.jsonl.gz"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for tokenizer, tokens and checkpoints"
    )
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens a row")
    parser.add_argument("--batch", type=int, default=32, help="rows a step")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--max-steps", type=int, default=8000)
    parser.add_argument("--cooldown-steps", type=int, default=1500)
    parser.add_argument("--save-steps", type=int, default=250)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: slow start, about 1.5x as fast"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    keep_freed_memory()
    shards = sorted(args.data.glob("train-*.jsonl.gz"))
    folder = args.work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(shards, folder, args.vocabulary)
    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    (args.work / "tokens").mkdir(parents=True, exist_ok=True)
    files = []
    for shard in [*shards, args.data / "valid.jsonl.gz"]:
        files.append(args.work / "tokens" / (shard.name.removesuffix(".jsonl.gz") + ".npy"))
        if not files[-1].exists():
            tokenize(shard, fast.backend_tokenizer, files[-1], fast.eos_token_id)

    config = MistralConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    torch.manual_seed(0)
    decoder = MistralForCausalLM(config).model
    on_gpu = torch.cuda.is_available()
    trainer = CausalTrainer(
        model=decoder,
        args=TrainingArguments(
            output_dir=str(args.work / "checkpoints"),
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch,
            per_device_eval_batch_size=args.batch,
            learning_rate=args.learning_rate,
            weight_decay=0.1,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=not on_gpu,
            torch_compile=args.compile,
            lr_scheduler_kwargs={"cooldown_steps": args.cooldown_steps},
            logging_steps=25,
            eval_strategy="steps",
            eval_steps=500,
            save_steps=args.save_steps,
            save_total_limit=3,
            remove_unused_columns=False,
            dataloader_drop_last=True,
            report_to=[],
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=Chunks(files[:-1], args.length),
        eval_dataset=torch.utils.data.Subset(Chunks(files[-1:], args.length), range(512)),
    )
    found = sorted((args.work / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    trainer.train(resume_from_checkpoint=str(found[-1]) if found else None)
    trainer.save_model(str(args.work / "final"))
    fast.save_pretrained(args.work / "final")
    print(json.dumps(trainer.state.log_history[-3:], indent=1))


if __name__ == "__main__":
    main()
