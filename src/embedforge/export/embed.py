"""Text to vectors with this folder alone: numpy, tokenizers, and onnxruntime or openvino; no torch.

    from embed import Embedder

    model = Embedder("FOLDER")
    queries = model.encode(["which river is the longest?"], "query")
    documents = model.encode(["The Nile is 6,650 km long."])
    print(queries @ documents.T)

contract.json says how a text becomes token ids, and which of them are pooled; model.onnx, or model.xml with
model.bin, does the rest. embedforge wrote this folder and ran it against the model that it is from, with this
very file; README.md has what came out.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Arrays = dict[str, NDArray[np.int64]]
Rendered = tuple[list[int], list[int], bool]
"""Token ids, 1 where a token is pooled, and whether the text was cut."""


class Embedder:
    """An exported model.

    Args:
        folder: what `embedforge export --to onnx` or `--to openvino` wrote.
        threads: of the runtime; as many as it likes when 0.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        folder = Path(folder)
        self.contract: dict[str, Any] = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
        self.ids: dict[str, int] = json.loads((folder / "export.json").read_text(encoding="utf-8"))["ids"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        first = self.tokenizer.encode("a", add_special_tokens=False).tokens[:1]
        self._marks_start = bool(first) and first[0].startswith(("▁", "Ġ"))
        open_model = _openvino if (folder / "model.xml").exists() else _onnxruntime
        self._run: Callable[[Arrays], NDArray[np.float32]] = open_model(folder, threads)

    def encode(
        self,
        texts: Sequence[str],
        kind: str = "document",
        *,
        instruction: str | None = None,
        batch_size: int = 32,
    ) -> NDArray[np.float32]:
        """Return the vectors of texts, in their order: float32 [texts, dim].

        Args:
            texts: any number; one that is too long for the model is cut, with a warning.
            kind: "query" puts the instruction before each text, "document" what documents have, mostly none.
            instruction: of queries; the contract's default one when None, none when "".
            batch_size: texts that go through the model together, of similar length.
        """
        if kind not in ("query", "document"):
            raise ValueError(f"kind is 'query' or 'document', not {kind!r}")
        rendered = self.render(texts, *self.frame(kind, instruction))
        if cut := sum(row[2] for row in rendered):
            most = self.contract["max_tokens"]
            warnings.warn(
                f"{cut} of {len(texts)} texts have more than {most} tokens, and were cut", stacklevel=2
            )
        return self.embed(rendered, batch_size)

    def embed(self, rendered: Sequence[Rendered], batch_size: int = 32) -> NDArray[np.float32]:
        """Return the vectors of rendered texts, in their order: float32 [texts, dim]."""
        order = sorted(range(len(rendered)), key=lambda row: -len(rendered[row][0]))
        vectors: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            vectors.update(zip(rows, self._run(self.pad([rendered[row] for row in rows])), strict=True))
        return (
            np.stack([vectors[row] for row in range(len(rendered))]) if rendered else np.empty((0, 0), "f4")
        )

    def frame(self, kind: str, instruction: str | None = None) -> tuple[str, str]:
        """Return what stands before and after a text."""
        contract = self.contract
        if instruction is None:
            instruction = contract["default_instruction"] if kind == "query" else ""
        instruction = instruction.strip()
        template = contract["query_template" if kind == "query" or instruction else "document_template"]
        start, end = contract["chat_template"].split("{text}")
        if not instruction and "{instruction}" in template:
            return start, end
        before, after = template.split("{text}")
        return start + before.replace("{instruction}", instruction), after + end

    def render(self, texts: Sequence[str], prefix: str, suffix: str = "") -> list[Rendered]:
        """Tokenise `prefix + text + suffix` of each text, cut it, and say which tokens are pooled."""
        if self.contract["strip_text_end"]:
            texts = [text.rstrip() for text in texts]
        encodings = self.tokenizer.encode_batch(
            [prefix + text + suffix for text in texts], add_special_tokens=False
        )
        return [
            self._finish(encoding.ids, [end for _, end in encoding.offsets], prefix, len(prefix) + len(text))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def pad(self, rendered: Sequence[Rendered]) -> Arrays:
        """Stack texts into what the model takes: int64 [texts, tokens] each, both masks 0 on padding."""
        width = max(len(ids) for ids, _, _ in rendered)
        names = ("input_ids", "attention_mask", "pooling_mask")
        batch = {name: np.zeros((len(rendered), width), dtype=np.int64) for name in names}
        batch["input_ids"][:] = self.ids["pad"]
        for row, (ids, mask, _) in enumerate(rendered):
            right = self.contract["padding_side"] == "right"
            span = slice(0, len(ids)) if right else slice(width - len(ids), width)
            batch["input_ids"][row, span] = ids
            batch["attention_mask"][row, span] = 1
            batch["pooling_mask"][row, span] = mask
        return batch

    def _finish(self, ids: list[int], ends: list[int], prefix: str, text_end: int) -> Rendered:
        """Cut the text, add BOS and EOS, and make the pooling mask."""
        contract, most = self.contract, self.contract["max_tokens"]
        bos = [self.ids["bos"]] if contract["add_bos"] else []
        eos = [self.ids["eos"]] if contract["add_eos"] else []
        survives = contract["eos_survives_truncation"]
        cut = len(bos) + len(ids) + len(eos) > most
        if cut and not survives:
            eos = []
        # Tokens of the suffix stay, as do BOS and EOS: it is the text that loses its end.
        tail = sum(end > text_end for end in ends) if survives else 0
        kept = min(len(ids) - tail, most - len(bos) - len(eos) - tail)
        pooled = [1] * len(ids) if contract["pool_instruction"] else self._in_text(prefix, ends)
        pool_bos = contract["pool_bos"] == "always" or (
            contract["pool_bos"] == "without_instruction" and not prefix
        )
        rows = slice(kept), slice(len(ids) - tail, len(ids))
        all_ids = bos + ids[rows[0]] + ids[rows[1]] + eos
        mask = [int(pool_bos)] * len(bos) + pooled[rows[0]] + pooled[rows[1]]
        mask += [int(contract["pool_eos"])] * len(eos)
        if not all_ids:
            return [self.ids["pad"]], [1], cut
        if 1 not in mask:
            mask[-1] = 1
        return all_ids, mask, cut

    def _in_text(self, prefix: str, ends: list[int]) -> list[int]:
        """Return 1 for each token that ends beyond the prefix."""
        if not prefix:
            return [1] * len(ends)
        own_space = self._marks_start and not self.contract["isolate_prefix"]
        start = len(prefix.rstrip(" ") if own_space else prefix)
        return [int(end > start) for end in ends]


def _onnxruntime(folder: Path, threads: int) -> Callable[[Arrays], NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return lambda batch: session.run(None, batch)[0]


def _openvino(folder: Path, threads: int) -> Callable[[Arrays], NDArray[np.float32]]:
    import openvino

    # Without the hint, CPUs with bfloat16 compute in it: faster, and other numbers.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    model = openvino.Core().compile_model(str(folder / "model.xml"), "CPU", options)
    return lambda batch: model(batch)[0]
