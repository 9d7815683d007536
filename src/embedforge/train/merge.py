"""Finished models of one shape made into one: the mean of their weights, or the point between them on an arc.

Models that were trained from the same base over other data, orders or seeds lie in one valley, and their mean
is often better than any of them, at no cost when it is used (model soups, arXiv 2203.05482). A development
set decides which belong into it: greedily, a model is added only where retrieval does not fall.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from embedforge.console import stdout
from embedforge.data.convert import read_source
from embedforge.data.example import Example
from embedforge.data.marks import common_mark, read_mark, write_mark
from embedforge.errors import EmbedforgeError
from embedforge.files import write_json
from embedforge.model.encoder import EmbeddingModel, embedding_model, load, save
from embedforge.model.folder import find_folder
from embedforge.model.shards import INT8_WEIGHTS
from embedforge.recipe import source_of
from embedforge.run_folder import first_difference
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.text.contract import Contract
from embedforge.train.decontamination import MERGED
from embedforge.train.metrics import held_out_retrieval

METRIC = "eval_mrr@10"
How = Literal["mean", "slerp"]
Build = Callable[[], EmbeddingModel]
_UNRELATED = 0.5
"""Cosine of all weights below which two models cannot come from one base; fine-tunes of one are above 0.9."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """A model, and what became of it."""

    model: str
    weight: float
    """Its share of the result, 0 to 1; 0 where it was left out."""
    alone: float | None = None
    """MRR@10 on the development sets by itself."""
    joined: float | None = None
    """The same of those kept so far together with this one."""
    why: str = ""


def merge(
    models: Sequence[str],
    out: Path | str,
    *,
    how: How = "mean",
    weights: Sequence[float] = (),
    dev: Sequence[str | Path] = (),
    device: str | None = None,
) -> list[Part]:
    """Write the model between finished models: same base, same shape, same contract.

    Sums are in float32, and the result is saved in the models' own dtype, its goldens made anew. Memory is
    that of two models, and of three float32 copies of the weights, four with `dev`.

    Args:
        models: two or more folders that embedforge saved.
        out: folder to write; new, empty, or holding a model.
        how: mean, or slerp: spherical interpolation, tensor by tensor, which keeps the length of the weights
            where a mean shortens it (Shoemake 1985). More than two models are joined one after the other.
        weights: one a model, above 0; all alike when empty. For all models, so not with `dev`.
        dev: files of Examples that no model was trained on. With them the models are ranked by retrieval,
            and, from the best on, each is added only if the mean MRR@10 over the files does not fall.
        device: for retrieval on `dev`; CUDA where there is one when None.

    Returns:
        The models in the order in which they were joined.

    Raises:
        EmbedforgeError: fewer than two models, one that is no such folder, other contracts or shapes (named),
            bad weights, or unreadable development sets.
    """
    _check_arguments(models, Path(out), how, weights, dev)
    check_contracts(models)
    builds = {name: partial(load_model, name) for name in models}
    parts, model = merged(builds, how=how, weights=weights, dev=dev, device=device)
    save(model, out)
    write_json(Path(out) / MERGED, record_of(how, parts))
    _leave_mark(Path(out), [part.model for part in parts if part.weight])
    return parts


def merged(
    builds: Mapping[str, Build],
    *,
    how: How,
    weights: Sequence[float] = (),
    dev: Sequence[str | Path] = (),
    device: str | None = None,
    source_folder: Path | None = None,
) -> tuple[list[Part], EmbeddingModel]:
    """Return what became of each model, and the one between them, on the CPU.

    Args:
        builds: by name, what makes each model: plain, on the CPU. It may be called twice.
        how: see `merge`, and so for `weights` and `device`.
        weights: one a model, or none.
        dev: files of Examples.
        device: for retrieval on `dev`.
        source_folder: where relative paths of `dev` start.

    Raises:
        EmbedforgeError: models of other shapes (named), or unreadable development sets.
    """
    models = _Models(builds)
    if dev:
        score = _scorer(models.first, dev, device, source_folder)
        parts, state = _greedy(models, how, score)
    else:
        parts, state = _all(models, how, weights)
    _fill(models.first, state)
    return parts, models.first.to("cpu")


def record_of(how: How, parts: Sequence[Part]) -> dict[str, Any]:
    """Return what `merge.json` holds."""
    return {"how": how, "models": [asdict(part) for part in parts]}


def print_parts(parts: Sequence[Part], console: Console | None = None) -> None:
    """Print what was merged, in the order in which it was joined."""
    columns = ["model", "share"]
    is_greedy = parts[0].alone is not None
    columns += ["MRR@10 alone", "joined", ""] if is_greedy else []
    table = Table(*columns, box=None, pad_edge=False)
    for part in parts:
        row = [escape(part.model), f"{part.weight:.3f}"]
        row += [f"{part.alone:.4f}", f"{part.joined:.4f}", part.why] if is_greedy else []
        table.add_row(*row)
    (console or stdout()).print(table)


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Return the point a share of the way from one tensor to another, on the arc between them.

    Equal or parallel ones, and those of length 0, are joined on a line, where an arc has no plane.

    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    tensor([0.7071, 0.7071])

    Args:
        one: float32, of any shape.
        other: of the same.
        share: 0 gives `one`, 1 gives `other`.
    """
    lengths = float(one.norm()) * float(other.norm())
    cosine = float((one.double() * other.double()).sum()) / lengths if lengths else 1.0
    angle = torch.tensor(min(1.0, max(-1.0, cosine)), dtype=torch.float64).acos()
    if angle.sin() < 1e-6:
        return one + share * (other - one)
    first, second = (((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin())
    return float(first) * one + float(second) * other


@dataclass(frozen=True, slots=True)
class _Join:
    """Some models joined: their weights, in float32."""

    state: Mapping[str, Tensor]
    total: float

    def plus(self, state: Mapping[str, Tensor], weight: float, how: How) -> _Join:
        total = self.total + weight
        share = weight / total
        join = slerp if how == "slerp" else _line
        return _Join({name: join(own, state[name], share) for name, own in self.state.items()}, total)


def _line(one: Tensor, other: Tensor, share: float) -> Tensor:
    return (1 - share) * one + share * other


class _Models:
    """The models to merge: the first one, which is filled with what is tried, and the weights of each."""

    def __init__(self, builds: Mapping[str, Build]) -> None:
        self.builds, self.names = builds, list(builds)
        self.first = builds[self.names[0]]()
        self._own = state_of(self.first)

    def state(self, name: str) -> dict[str, Tensor]:
        """Return a model's weights; one that is not of the first one's shape is refused."""
        if name == self.names[0]:
            return dict(self._own)
        other = self.builds[name]()
        _require_like(self.first, self.names[0], other, name)
        return state_of(other)


def _all(models: _Models, how: How, weights: Sequence[float]) -> tuple[list[Part], Mapping[str, Tensor]]:
    """Join all models by their weights."""
    names = models.names
    weights = weights or [1.0] * len(names)
    joined = _Join(models.state(names[0]), weights[0])
    for name, weight in zip(names[1:], weights[1:], strict=True):
        state = models.state(name)
        _warn_of_a_stranger(name, state, joined.state)
        joined = joined.plus(state, weight, how)
    parts = [Part(name, weight / sum(weights)) for name, weight in zip(names, weights, strict=True)]
    return parts, joined.state


def _greedy(
    models: _Models, how: How, score: Callable[[Mapping[str, Tensor]], float]
) -> tuple[list[Part], Mapping[str, Tensor]]:
    """Go through the models from the best on, and keep what does not lower the score."""
    alone = {name: score(models.state(name)) for name in models.names}
    best, *others = sorted(models.names, key=lambda name: -alone[name])
    kept, reached = _Join(models.state(best), 1.0), alone[best]
    parts = [Part(best, 1.0, alone[best], alone[best], "the best one alone")]
    for name in others:
        state = models.state(name)
        _warn_of_a_stranger(name, state, kept.state)
        tried = kept.plus(state, 1.0, how)
        found = score(tried.state)
        if found >= reached:
            why = f"{found - reached:+.4f}"
            kept, reached = tried, found
        else:
            why = f"left out, {found - reached:+.4f}"
        parts.append(Part(name, float(kept is tried), alone[name], found, why))
    share = 1 / sum(part.weight for part in parts)
    return [_with_share(part, share) for part in parts], kept.state


def _with_share(part: Part, share: float) -> Part:
    return Part(part.model, part.weight * share, part.alone, part.joined, part.why)


def _scorer(
    model: EmbeddingModel, dev: Sequence[str | Path], device: str | None, folder: Path | None
) -> Callable[[Mapping[str, Tensor]], float]:
    """Return what measures weights, put into `model`, on the development sets."""
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    instruction = model.contract.default_instruction
    pools: list[list[Example]] = [
        read_source(source_of(str(path), name="dev", instruction=instruction), seed=0, folder=folder)
        for path in dev
    ]

    def score(state: Mapping[str, Tensor]) -> float:
        _fill(model, state)
        found = [held_out_retrieval(model, pool, bfloat16=False)[METRIC] for pool in pools]
        return sum(found) / len(found)

    return score


def load_model(name: str) -> EmbeddingModel:
    """Load a finished model, on the CPU."""
    return embedding_model(load(name, device="cpu")).eval()


def _require_like(model: EmbeddingModel, first: str, other: EmbeddingModel, name: str) -> None:
    """Refuse a model that is not of the first one's shape."""
    for part, one, two in (
        ("config.json", _config(model), _config(other)),
        ("the pooling's settings", model.pooling, other.pooling),
        ("the shape of the weights", _shapes(model), _shapes(other)),
    ):
        if difference := first_difference(one, two):
            raise EmbedforgeError(
                f"{name} cannot be merged with {first}: {part} differ: {difference}. Models are merged that "
                "one base was trained to, under one recipe but for data, steps and seed"
            )
    if model.tokenizer.backend_tokenizer.to_str() != other.tokenizer.backend_tokenizer.to_str():
        raise EmbedforgeError(f"{name} cannot be merged with {first}: their tokenizers differ")


def _config(model: EmbeddingModel) -> dict[str, Any]:
    ignored = {"_name_or_path", "transformers_version", "architectures", "dtype"}
    return {key: value for key, value in model.decoder.config.to_dict().items() if key not in ignored}


def _shapes(model: EmbeddingModel) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def _warn_of_a_stranger(name: str, state: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Say where a model cannot come from the base of the others: what lies between such weights is noise."""
    dot = sum(float((tensor * others[key]).sum()) for key, tensor in state.items())
    norms = [sum(float(tensor.square().sum()) for tensor in each.values()) ** 0.5 for each in (state, others)]
    cosine = dot / max(norms[0] * norms[1], 1e-30)
    if cosine < _UNRELATED:
        logger.warning(
            "the weights of %s have a cosine of %.2f to those of the models before it: they do not come from "
            "one base, and what lies between them is likely to know nothing",
            name,
            cosine,
        )


def state_of(model: EmbeddingModel) -> dict[str, Tensor]:
    """Return the model's weights in float32, on the CPU, apart from the model."""
    return {
        name: tensor.detach().to("cpu", torch.float32, copy=True)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


def _fill(model: EmbeddingModel, state: Mapping[str, Tensor]) -> None:
    """Put weights into a model, in its dtype."""
    model.load_state_dict(dict(state), strict=False)


def _check_arguments(
    models: Sequence[str], out: Path, how: str, weights: Sequence[float], dev: Sequence[str | Path]
) -> None:
    if len(set(models)) < len(models) or len(models) < 2:
        raise EmbedforgeError(f"two or more different models are merged, not {', '.join(models) or 'none'}")
    if how not in ("mean", "slerp"):
        raise EmbedforgeError(f"models are merged by mean or slerp, not by '{how}'")
    if weights and dev:
        raise EmbedforgeError("weights are for all models, and dev chooses among them: give one of the two")
    if weights and (len(weights) != len(models) or min(weights) <= 0):
        raise EmbedforgeError(
            f"{len(models)} models are merged by one weight each, all above 0, not by {list(weights)}"
        )
    if out.resolve() in {Path(name).resolve() for name in models}:
        raise EmbedforgeError(f"{out}: the merged model would replace one of those it is made of")


def check_contracts(models: Sequence[str], first: Contract | None = None) -> None:
    """Refuse models that make vectors of text in different ways, before weights are read.

    With `first`, theirs has to be that one, but for the dtype, which is of the weights.
    """
    ignored = {"goldens"} if first is None else {"goldens", "dtype"}
    common = None if first is None else first.model_dump(mode="json", exclude=ignored)
    whose = models[0] if first is None else "what the recipe trains"
    for name in models:
        folder = find_folder(name)
        if not (folder / CONTRACT).exists():
            raise EmbedforgeError(
                f"{name}: there is no {CONTRACT}, so this is no model that embedforge saved; an official "
                "checkpoint can be made one: embedforge export"
            )
        if (folder / INT8_WEIGHTS).exists():
            raise EmbedforgeError(
                f"{name}: its weights are int8, between which there is no mean; merge the models that they "
                "were made of, then round the result"
            )
        contract = Contract.load(folder).model_dump(mode="json", exclude=ignored)
        common = common or contract
        if difference := first_difference(common, contract):
            raise EmbedforgeError(f"{name} cannot be merged with {whose}: contract: {difference}")


def _leave_mark(out: Path, models: Sequence[str]) -> None:
    """Give a merged model the mark of what the data of all of its parts was checked against."""
    marks = [read_mark(find_folder(name)) for name in models]
    known = [mark for mark in marks if mark is not None]
    if len(known) == len(marks):
        write_mark(out, common_mark(known))
