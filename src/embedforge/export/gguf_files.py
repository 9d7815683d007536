"""GGUF for llama.cpp: what such a file can hold, and asking llama.cpp's own server what it makes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from embedforge.errors import EmbedforgeError
from embedforge.export.gguf_tokens import Vocabulary, vocabulary_of
from embedforge.export.gguf_write import FAMILIES, POOLINGS, ROPES, write_gguf
from embedforge.export.parity import Floats, Parity, Reference
from embedforge.export.texts import Probe
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.int8 import is_int8

FILE = "model.gguf"
SLOTS = 4
"""Texts that the server takes at a time, as llama-server does by default."""
BATCH = 32

WAY_OUT = "; --to onnx holds it"


def obstacle(model: EmbeddingModel) -> str | None:
    """Say what llama.cpp, or a GGUF file, cannot do of a model; None when they can do all."""
    reason = _of_the_decoder(model) or _of_the_vector(model) or _of_the_text(model)
    return None if reason is None else reason + WAY_OUT


def _of_the_decoder(model: EmbeddingModel) -> str | None:
    config = model.decoder.config
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        return f"its decoder is a {config.model_type}, and what is written here are decoders of {known}"
    if is_int8(model.decoder):
        return "its weights are int8 with scales of their own (export the model that they were made of)"
    if not config.num_hidden_layers:
        return "it has no layers (a static embedder), and llama.cpp wants one at least"
    if config.hidden_act != "silu":
        return f"llama.cpp computes these decoders with silu, not with {config.hidden_act}"
    window = getattr(config, "sliding_window", None)
    if window and window < model.contract.max_tokens:
        return f"its tokens see {window} others at most (sliding_window), and llama.cpp shows them all"
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in (ROPES if FAMILIES[config.model_type].interleaved else ROPES[:1]):
        return f"rotary embeddings of the kind {kind} are not written here for a {config.model_type}"
    return None


def _of_the_vector(model: EmbeddingModel) -> str | None:
    kind = model.contract.pooling
    if kind not in POOLINGS:
        return f"llama.cpp has no pooling '{kind}', only {', '.join(POOLINGS)}"
    if model.projection is not None:
        return "a linear map follows the pooling, and llama.cpp has none for decoders of this family"
    contract = model.contract
    for of, prefix, suffix in (
        ("document", contract.document_prefix(), contract.document_suffix()),
        ("query", contract.query_prefix(), contract.query_suffix()),
    ):
        (row,) = model.renderer.render(["how deep is the river?"], prefix, suffix=suffix)
        mask = row.pooling_mask
        whole = {"mean": all(mask), "last": mask[-1] == 1, "cls": mask[0] == 1}
        if not whole[kind]:
            return (
                f"llama.cpp takes the {kind} of all tokens of a string, and of a {of} the contract leaves "
                f"out {mask.count(0)} of {len(mask)} (the instruction's, BOS or EOS)"
            )
    return None


def _of_the_text(model: EmbeddingModel) -> str | None:
    contract = model.contract
    if contract.text_max_tokens is not None or contract.strip_text_end:
        return (
            "texts are shortened by words or stripped before they are tokenised, which llama.cpp does not do"
        )
    vocabulary = _vocabulary(model)
    return vocabulary if isinstance(vocabulary, str) else None


def _vocabulary(model: EmbeddingModel) -> Vocabulary | str:
    rows = model.decoder.get_input_embeddings().num_embeddings
    return vocabulary_of(model.tokenizer, model.contract, rows)


def checkable(probes: Sequence[Probe]) -> list[Probe]:
    """Return the texts that llama.cpp takes: it refuses what the contract would cut, and no token at all."""
    return [
        probe
        for probe in probes
        if not probe.rendered.cut
        and (probe.prefix + probe.text + probe.suffix or len(probe.rendered.input_ids) > 1)
    ]


def write(
    model: EmbeddingModel, folder: Path, reference: Reference, int8: bool, least: float
) -> Sequence[Parity]:
    """Write the file and the contract, checked; the last row is what stays.

    16-bit weights become float16: with bfloat16 ones llama.cpp rounds what they are multiplied with to eight
    bits, which costs more than the weights lose (a cosine of 0.9986 for SmolLM2-135M, in place of 0.99999).
    """
    model.contract.save(folder)
    dtype = "float32" if model.contract.dtype == "float32" else "float16"
    exact = _written(model, folder / ("exact.gguf" if int8 else FILE), dtype, reference)
    if not int8:
        reference.require(exact, least)
        return [exact]
    (folder / "exact.gguf").unlink()
    rounded = _written(model, folder / FILE, "int8", reference)
    reference.require(rounded, least)
    return [exact, rounded]


def _written(model: EmbeddingModel, file: Path, dtype: str, reference: Reference) -> Parity:
    vocabulary = _vocabulary(model)
    assert isinstance(vocabulary, Vocabulary)  # or `obstacle` had said so
    write_gguf(model, vocabulary, file, dtype)
    return reference.compare(f"llama.cpp, {dtype}", _Server(file, model, vocabulary))


class _Server:
    """llama.cpp's server in this process, asked over HTTP as any client would."""

    def __init__(self, file: Path, model: EmbeddingModel, vocabulary: Vocabulary) -> None:
        import xllamacpp

        self.sent = Sent(model, vocabulary)
        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.embedding = True
        settings.n_parallel = SLOTS
        settings.kv_unified = True
        # A text has to go through in one piece, or tokens could not see those that follow.
        settings.n_ctx = settings.n_batch = settings.n_ubatch = SLOTS * model.contract.max_tokens
        # As many as the model itself has; more than there are free cores wait for one another.
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
        settings.verbosity = -1
        settings.warmup = False
        try:
            self.server = xllamacpp.Server(settings)
        except RuntimeError as error:
            raise EmbedforgeError(
                f"llama.cpp (xllamacpp {xllamacpp.__version__}) cannot open what was written ({error}); "
                "nothing was written. --to onnx is another way"
            ) from error
        self.address = urlsplit(self.server.listening_address).netloc

    def tokens(self, probe: Probe) -> tuple[list[int], list[int] | None]:
        asked = {"content": self.sent.input(probe), "add_special": True, "parse_special": True}
        return self._ask("/tokenize", asked)["tokens"], None

    def vectors(self, probes: Sequence[Probe]) -> Floats:
        inputs = [self.sent.input(probe) for probe in probes]
        found = []
        for start in range(0, len(inputs), BATCH):
            answer = self._ask("/v1/embeddings", {"input": inputs[start : start + BATCH]})
            found += [row["embedding"] for row in sorted(answer["data"], key=lambda row: row["index"])]
        return np.array(found, dtype=np.float32)

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = HTTPConnection(self.address)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "error" in answer:
            raise EmbedforgeError(
                f"llama.cpp refuses a text of the check: {answer['error'].get('message')}; nothing was "
                "written"
            )
        return dict(answer)


class Sent:
    """A text as it is sent to llama.cpp's server."""

    def __init__(self, model: EmbeddingModel, vocabulary: Vocabulary) -> None:
        self.tokenizer, self.contract = model.tokenizer, model.contract
        self.vocabulary = vocabulary

    def input(self, probe: Probe) -> str | list[str | int]:
        """Return one string, or, where the instruction is tokenised apart, pieces with the ids around them.

        The first piece is an id: behind a string, the server would put BOS before it and EOS after it.
        """
        prepare, tokenizer, contract = self.vocabulary.prepare, self.tokenizer, self.contract
        text = probe.text + probe.suffix
        if not (contract.isolate_prefix and probe.prefix):
            return prepare(probe.prefix + text)
        eos = [tokenizer.eos_token_id] if contract.add_eos else []
        if contract.add_bos:
            return [tokenizer.bos_token_id, prepare(probe.prefix), prepare(text), *eos]
        return [*tokenizer(probe.prefix, add_special_tokens=False)["input_ids"], prepare(text), *eos]


def use(model: EmbeddingModel, probes: Sequence[Probe]) -> str:
    """Return how the file is used, as Markdown."""
    contract, vocabulary = model.contract, _vocabulary(model)
    assert isinstance(vocabulary, Vocabulary)
    sent = Sent(model, vocabulary)
    examples = [
        next((sent.input(probe) for probe in probes if probe.kind == kind and probe.text), "")
        for kind in ("document", "query")
    ]
    call = _SERVER.format(
        pooling=contract.pooling, tokens=SLOTS * contract.max_tokens, slots=SLOTS, most=contract.max_tokens
    )
    bodies = [f'    {{"input": {json.dumps([each], ensure_ascii=False)}}}' for each in examples]
    notes = _notes(model, vocabulary, in_pieces=isinstance(examples[1], list))
    return "\n".join([call, *bodies, "", *(f"- {note}" for note in notes)]).rstrip()


def _notes(model: EmbeddingModel, vocabulary: Vocabulary, *, in_pieces: bool) -> list[str]:
    """Return what a caller has to know, a sentence or two each."""
    contract = model.contract
    pooled_along = contract.pooling != "last" and not contract.pool_instruction
    holds = {
        _PIECES: in_pieces,
        _NO_INSTRUCTION: pooled_along and "{instruction}" in contract.query_template,
        "Put texts into Unicode's form NFC first (Python: unicodedata.normalize).": vocabulary.composed,
        "Leave out one space at a text's beginning, if there is one: llama.cpp adds its own.": (
            vocabulary.one_space
        ),
        _LENGTH: not contract.normalize,
        _BOTH_WAYS[FAMILIES[model.decoder.config.model_type].interleaved]: contract.attention != "causal",
    }
    return [note for note, wanted in holds.items() if wanted]


_SERVER = """llama.cpp's server runs it, {slots} texts at a time; one of more than {most} tokens is refused:

    llama-server -m model.gguf --embeddings --pooling {pooling} -c {tokens} -b {tokens} -ub {tokens}

A document and a query, as they are posted to `/v1/embeddings`:
"""

_PIECES = (
    "A query is sent in pieces, as above: what is before the text, then the text, between the ids of BOS and "
    "EOS (without BOS, the ids of what is before the text, from `/tokenize`). In one string the last token "
    "of the instruction and the first of the text would become one, and the vector another; a client that "
    "can send nothing but strings (llama-cpp-python's, Ollama's) is for documents only."
)
_NO_INSTRUCTION = "Put no instruction before a query: llama.cpp would pool it along with the text."
_LENGTH = (
    'Vectors come with unit length; with `"embd_normalize": -1` in the body they have the length that the '
    "model gives them."
)
_BOTH_WAYS = {
    True: "Tokens see those that follow them (llama.cpp's architecture `llama-embed`); a llama.cpp of "
    "before 2026 says that it does not know it.",
    False: "Tokens see those that follow them. That is a key of the file, `attention.causal`, which "
    "llama.cpp heeds for this family since spring 2026; an older one passes over it without a word, and "
    "gives other vectors.",
}
