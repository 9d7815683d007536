"""Goldens: texts whose ids, pooling mask and vector are stored with the model and checked wherever it goes.

A changed tokenizer file, a library that rebuilds the tokenizer's pipeline, a causal mask where a
bidirectional one was trained: none of them raises an error by itself, all of them change a golden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from embedforge.errors import EmbedforgeError
from embedforge.text.contract import Contract, Golden
from embedforge.text.render import Rendered, Renderer

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN_TEXTS = (
    "how deep is the river?",
    " Two lines, 3.14 and a tab:\tthe end\n",
    "Übung macht den Meister – «déjà vu» ½",
    "日本語のテキスト 🙂 שלום",
    "",
)
"""Short texts that tokenizers treat differently: words, white space, digits, accents, other scripts, none."""

VECTOR_NUMBERS = 16

Embed = Callable[[dict[str, "Tensor"]], "Tensor"]
"""From a token batch of int64 tensors [texts, tokens] to unit-length embeddings [texts, dim]."""

_CAUSES = {
    "token ids": "another tokenizer.json, a tokenizer class that rebuilds its pipeline when it is loaded, "
    "another library version, or an edited contract (add_bos, add_eos, max_tokens, isolate_prefix)",
    "pooling mask": "an edited contract (pool_instruction, pool_bos, pool_eos, isolate_prefix), or another "
    "library version that counts character offsets differently",
    "vector": "other weights, a causal mask instead of a bidirectional one (or the reverse), another "
    "pooling, a sliding window that is on, or a half-precision run checked with the tolerance of float32",
}


def golden_batch(renderer: Renderer, contract: Contract) -> dict[str, Tensor]:
    """Return the contract's golden texts as a token batch of int64 tensors [texts, tokens]."""
    return renderer.pad(_rendered(renderer, contract))


def make_goldens(renderer: Renderer, embed: Embed | None = None) -> tuple[Golden, ...]:
    """Render each golden text as a document and as a query with the default instruction, and embed it.

    Run `embed` in float32 on the weights as they are saved: its first 16 numbers of each text are stored.
    Without `embed` the goldens hold ids and masks only. Texts are cut at the contract's max_tokens, and
    stored as `Renderer.prepare` leaves them, so that a plain library can be held to the same ids.
    """
    contract = renderer.contract
    frames = dict.fromkeys(
        (
            (contract.document_prefix(), contract.document_suffix()),
            (contract.query_prefix(), contract.query_suffix()),
        )
    )
    wanted = [(text, *frame) for text in renderer.prepare(GOLDEN_TEXTS) for frame in frames]
    rendered = [_render(renderer, *each) for each in wanted]
    vectors = [()] * len(wanted) if embed is None else _vectors(renderer, rendered, embed)
    return tuple(
        Golden(
            text=text,
            prefix=prefix,
            suffix=suffix,
            input_ids=tuple(row.input_ids),
            pooling_mask=tuple(row.pooling_mask),
            vector=vector,
        )
        for (text, prefix, suffix), row, vector in zip(wanted, rendered, vectors, strict=True)
    )


def check_goldens(
    renderer: Renderer, contract: Contract, embed: Embed | None = None, tolerance: float = 1e-4
) -> None:
    """Compare what `renderer` (and `embed`) make of the contract's golden texts with what is stored.

    Ids and masks must agree exactly, vectors within `tolerance` (the largest absolute difference of a number
    of a unit-length vector; 1e-4 suits float32, 2e-2 half precision). Goldens without a vector, or a call
    without `embed`, check ids and masks only.

    Raises EmbedforgeError with the text, the expected and the found values, and the likely causes.
    """
    goldens = contract.goldens
    rendered = _rendered(renderer, contract)
    for golden, row in zip(goldens, rendered, strict=True):
        if tuple(row.input_ids) != golden.input_ids:
            tokens = renderer.tokenizer.convert_ids_to_tokens
            expected, actual = list(golden.input_ids), row.input_ids
            raise _changed(
                golden, "token ids", f"{expected} {tokens(expected)}", f"{actual} {tokens(actual)}"
            )
        if tuple(row.pooling_mask) != golden.pooling_mask:
            raise _changed(golden, "pooling mask", str(list(golden.pooling_mask)), str(row.pooling_mask))
    if embed is not None and goldens:
        check_vectors(contract, _vectors(renderer, rendered, embed), tolerance)


def check_vectors(contract: Contract, vectors: Sequence[tuple[float, ...]], tolerance: float = 1e-4) -> None:
    """Compare the first numbers of the goldens' unit vectors with what is stored; see `check_goldens`."""
    for golden, vector in zip(contract.goldens, vectors, strict=True):
        if golden.vector and not _near(golden.vector, vector, tolerance):
            raise _changed(golden, f"vector (tolerance {tolerance:g})", str(golden.vector), str(vector))


def _render(renderer: Renderer, text: str, prefix: str, suffix: str) -> Rendered:
    return renderer.render([text], prefix, suffix=suffix)[0]


def _rendered(renderer: Renderer, contract: Contract) -> list[Rendered]:
    return [_render(renderer, golden.text, golden.prefix, golden.suffix) for golden in contract.goldens]


def _vectors(renderer: Renderer, rendered: list[Rendered], embed: Embed) -> list[tuple[float, ...]]:
    """Embed all goldens as one padded batch, [texts, up to 16 numbers]."""
    import torch

    with torch.no_grad():
        vectors = embed(renderer.pad(rendered))[:, :VECTOR_NUMBERS]
    return [tuple(row) for row in vectors.float().cpu().tolist()]


def _near(expected: tuple[float, ...], actual: tuple[float, ...], tolerance: float) -> bool:
    if len(expected) != len(actual):
        return False
    # "not above" would let NaN pass.
    return all(abs(a - b) <= tolerance for a, b in zip(expected, actual, strict=True))


def _changed(golden: Golden, what: str, expected: str, actual: str) -> EmbedforgeError:
    causes = next(text for name, text in _CAUSES.items() if what.startswith(name))
    return EmbedforgeError(
        f"the {what} of a golden text changed: {golden.text!r} after the prefix {golden.prefix!r}\n"
        f"  expected {expected}\n"
        f"  found    {actual}\n"
        f"The model no longer does what its contract says. Likely causes: {causes}."
    )
