"""Does the exported file do what the model does: token ids, cosines, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.export.texts import Probe
from embedforge.model.embedding_model import EmbeddingModel

Floats = NDArray[np.float32]

FLOAT32_COSINE = 0.9999
INT8_COSINE = 0.98
"""Lowest cosine with the model's own vector that a text may have, by default: rounding explains the rest."""


class Runner(Protocol):
    """What runs an exported model: with its own tokenizer, and in its own runtime."""

    def tokens(self, probe: Probe) -> tuple[list[int], list[int] | None]:
        """Return the ids of a text, and its pooling mask where it can be asked for."""

    def vectors(self, probes: Sequence[Probe]) -> Floats:
        """Return vectors [texts, dim]."""


@dataclass(frozen=True)
class Parity:
    """A line of the table. Cosines are with the model in float32 under torch, on the CPU."""

    name: str
    tokens_equal: int
    """Texts whose token ids, and pooling mask, are the contract's."""
    cosine_min: float
    cosine_mean: float
    tokens_per_second: float
    worst: str = ""
    """The text of the lowest cosine."""
    unequal: str = ""
    """The first text with other token ids."""

    def facts(self) -> dict[str, Any]:
        """Return what a file keeps of it."""
        return {key: value for key, value in asdict(self).items() if key not in ("worst", "unequal")}


class Reference:
    """The model itself: what an export is measured against.

    Args:
        model: in float32, on the CPU.
        probes: the texts of the check.
    """

    def __init__(self, model: EmbeddingModel, probes: Sequence[Probe]) -> None:
        self.probes = probes
        self.tokens = sum(len(probe.rendered.input_ids) for probe in probes)
        self.expected, seconds = _timed(lambda: _own_vectors(model, probes))
        self.parity = Parity("embedforge, torch float32", len(probes), 1.0, 1.0, self.tokens / seconds)

    def compare(self, name: str, runner: Runner) -> Parity:
        """Run an export on the probes; nothing is refused here."""
        unequal = [probe.text for probe in self.probes if not _same_tokens(probe, runner)]
        found, seconds = _timed(lambda: runner.vectors(self.probes))
        if found.shape != self.expected.shape:
            raise EmbedforgeError(
                f"{name}: the exported model gives vectors {found.shape}, the model itself "
                f"{self.expected.shape}; nothing was written"
            )
        cosines = _cosines(found, self.expected)
        worst = int(np.nanargmin(np.where(np.isnan(cosines), -2.0, cosines)))
        return Parity(
            name,
            len(self.probes) - len(unequal),
            float(cosines.min()),  # NaN where there is one
            float(cosines.mean()),
            self.tokens / seconds,
            self.probes[worst].text,
            unequal[0] if unequal else "",
        )

    def require(self, parity: Parity, least: float) -> None:
        """Raise unless every text has its tokens, and a cosine of at least `least`.

        Raises:
            EmbedforgeError: names the text and the figures.
        """
        texts = len(self.probes)
        if parity.tokens_equal < texts:
            raise EmbedforgeError(
                f"{parity.name}: {texts - parity.tokens_equal} of {texts} texts have other token ids or "
                f"another pooling mask than under the contract, the first of them {parity.unequal!r:.80}; "
                "nothing was written"
            )
        if not parity.cosine_min >= least:  # NaN is refused too
            raise EmbedforgeError(
                f"{parity.name}: the vector of {parity.worst!r:.80} has a cosine of {parity.cosine_min:.5f} "
                f"with the model's own, and {least:g} is the least that is accepted (mean of {texts} texts: "
                f"{parity.cosine_mean:.5f}); nothing was written. --min-cosine accepts a lower one"
            )


def table(rows: Sequence[Parity], texts: int) -> str:
    """Return the parity table as Markdown."""
    lines = [
        "| | cosine, min | cosine, mean | token ids equal | tokens/s |",
        "|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.cosine_min:.5f} | {row.cosine_mean:.5f} | {row.tokens_equal} of {texts} | "
            f"{row.tokens_per_second:,.0f} |"
            for row in rows
        ),
    ]
    return "\n".join(lines)


def _own_vectors(model: EmbeddingModel, probes: Sequence[Probe]) -> Floats:
    return by_frame(
        probes,
        lambda texts, prefix, suffix: encode(model, texts, prefix, suffix=suffix, bfloat16=False),
    )


def by_frame(probes: Sequence[Probe], embed: Callable[[list[str], str, str], Floats]) -> Floats:
    """Embed texts that stand in the same frame together; return vectors [texts, dim] in the probes' order."""
    vectors: dict[int, Floats] = {}
    for prefix, suffix in dict.fromkeys((probe.prefix, probe.suffix) for probe in probes):
        rows = [row for row, probe in enumerate(probes) if (probe.prefix, probe.suffix) == (prefix, suffix)]
        found = embed([probes[row].text for row in rows], prefix, suffix)
        vectors.update(zip(rows, found, strict=True))
    return np.stack([vectors[row] for row in range(len(probes))])


def _timed(run: Callable[[], Floats]) -> tuple[Floats, float]:
    started = time.perf_counter()
    vectors = run()
    return vectors, max(time.perf_counter() - started, 1e-9)


def _same_tokens(probe: Probe, runner: Runner) -> bool:
    ids, mask = runner.tokens(probe)
    return ids == probe.rendered.input_ids and mask in (None, probe.rendered.pooling_mask)


def _cosines(found: Floats, expected: Floats) -> NDArray[np.float64]:
    a, b = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(lengths, 1e-30))
