"""The steps of a curation, in their one order: cheap ones first, what needs a model last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.progress import Progress

from embedforge.console import advancing
from embedforge.curate import consistency, duplicates, language, lengths
from embedforge.curate.decontaminate import NGRAM, DecontaminationSettings, Evaluation, decontaminate
from embedforge.curate.evaluation_texts import DOCUMENTS, Documents, EvaluationTask
from embedforge.curate.lengths import UNITS, Limits, Unit
from embedforge.curate.outcome import Outcome, RowText
from embedforge.curate.teacher import BM25, ModelTeacher
from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.model.folder import require_model

LEAST_NEAR = 0.5
_NEAR = f"from {LEAST_NEAR} to 1: of less similar texts MinHash finds too few"


@dataclass(frozen=True, slots=True)
class Curation:
    """What a curation does; a step without its setting is left out."""

    query_length: Limits | None = None
    document_length: Limits | None = None
    unit: Unit = "words"
    tokenizer: str = "embedforge:base"
    languages: tuple[str, ...] = ()
    language_confidence: float = language.CONFIDENCE
    exact: bool = True
    near: float | None = None
    """The least Jaccard similarity of near duplicates."""
    duplicates_of: duplicates.Unit = "pair"
    tasks: Sequence[EvaluationTask] = field(default=(), repr=False)
    documents: Documents = "none"
    ngram: int = NGRAM
    bm25: float = 0.0
    teacher: str | None = None
    top_k: int = consistency.TOP_K
    pool: int = consistency.POOL
    seed: int = 0
    device: str | None = None


class CurationStep(NamedTuple):
    """One step, ready to be run."""

    name: str
    settings: dict[str, Any]
    run: Callable[[Sequence[Example]], Outcome]


def check(curation: Curation) -> None:
    """Refuse values that no step can work with, and settings of steps that are off.

    Raises:
        EmbedforgeError: names the option, the value and what is possible.
    """
    choices = (
        ("--unit", curation.unit, UNITS),
        ("--documents", curation.documents, DOCUMENTS),
        ("--duplicates-of", curation.duplicates_of, ("pair", "query")),
    )
    for option, value, known in choices:
        if value not in known:
            raise EmbedforgeError(
                f"{option} '{value}' is none of {', '.join(known)}.{did_you_mean(value, known)}"
            )
    limits: tuple[tuple[str, float | None, bool, str], ...] = (
        ("--near", curation.near, curation.near is None or LEAST_NEAR <= curation.near <= 1, _NEAR),
        ("--bm25", curation.bm25, 0 <= curation.bm25 <= 1, "from 0 (off) to 1"),
        ("--ngram", curation.ngram, curation.ngram == 0 or curation.ngram >= 5, "0 (off), or 5 and more"),
        ("--top-k", curation.top_k, curation.top_k >= 1, "1 or more"),
        ("--pool", curation.pool, curation.pool >= 1, "1 or more"),
        (
            "--language-confidence",
            curation.language_confidence,
            0 < curation.language_confidence <= 1,
            "above 0 and at most 1",
        ),
    )
    for option, number, fits, allowed in limits:
        if not fits:
            raise EmbedforgeError(f"{option} is {allowed}, got {number}")
    _refuse_unused(curation)
    if curation.teacher not in (None, BM25):
        require_model(str(curation.teacher))


def _refuse_unused(curation: Curation) -> None:
    """Raise for a setting that would have no effect: the step it belongs to was forgotten."""
    has_lengths = curation.query_length is not None or curation.document_length is not None
    duplicates_are_dropped = curation.exact or curation.near is not None
    needs = {
        "unit": (has_lengths, "--query-length or --document-length"),
        "tokenizer": (has_lengths and curation.unit == "tokens", "--unit tokens and a length"),
        "language_confidence": (bool(curation.languages), "--languages"),
        "duplicates_of": (duplicates_are_dropped, "exact duplicates or --near"),
        "documents": (bool(curation.tasks), "--against"),
        "ngram": (bool(curation.tasks), "--against"),
        "bm25": (bool(curation.tasks), "--against"),
        "top_k": (curation.teacher is not None, "--teacher"),
        "pool": (curation.teacher is not None, "--teacher"),
        "device": (curation.teacher is not None, "--teacher"),
    }
    for name, (is_used, needed) in needs.items():
        value = getattr(curation, name)
        if not is_used and value != getattr(Curation(), name):
            option = f"--{name.replace('_', '-')}"
            raise EmbedforgeError(f"{option} {value} has no effect without {needed}")


def planned(curation: Curation, bar: Progress) -> list[CurationStep]:
    """Return the steps that the curation asks for, in their order, with all that they need.

    Lengths, languages, exact duplicates, near duplicates, decontamination, consistency. Evaluation tasks are
    read and a teacher is loaded here, so that what fails, fails before the work.

    Args:
        curation: as `check` lets it pass.
        bar: shows what is done.

    Raises:
        EmbedforgeError: what a step needs cannot be had, or there is no step at all.
    """
    steps = [step for make in _MAKERS for step in make(curation, bar)]
    if not steps:
        raise EmbedforgeError(
            "nothing to do: every step is off. Name one: --near, --languages, --query-length, "
            "--document-length, --against, --teacher, or leave --no-exact out"
        )
    return steps


def _lengths(curation: Curation, bar: Progress) -> Iterator[CurationStep]:
    query, document = curation.query_length, curation.document_length
    if query is None and document is None:
        return
    settings = {"query": str(query or Limits()), "document": str(document or Limits()), "unit": curation.unit}
    measure = lengths.measure_of(curation.unit, curation.tokenizer)

    def run(examples: Sequence[Example]) -> Outcome:
        advance = advancing(bar, "lengths", len(examples))
        return lengths.drop_lengths(
            examples, query or Limits(), document or Limits(), measure, curation.unit, advance
        )

    yield CurationStep("lengths", settings, run)


def _languages(curation: Curation, bar: Progress) -> Iterator[CurationStep]:
    if not curation.languages:
        return
    guess, confidence = language.detector(curation.languages), curation.language_confidence

    def run(examples: Sequence[Example]) -> Outcome:
        advance = advancing(bar, "languages", len(examples))
        return language.drop_languages(
            examples, curation.languages, guess, confidence=confidence, progress=advance
        )

    yield CurationStep("languages", {"languages": list(curation.languages), "confidence": confidence}, run)


def _duplicates(curation: Curation, bar: Progress) -> Iterator[CurationStep]:
    unit, near = curation.duplicates_of, curation.near
    if curation.exact:
        yield CurationStep(
            "exact duplicates",
            {"of": unit},
            lambda examples: duplicates.drop_exact_duplicates(examples, unit=unit),
        )
    if near is None:
        return

    def run(examples: Sequence[Example]) -> Outcome:
        advance = advancing(bar, "near duplicates", len(examples))
        return duplicates.drop_near_duplicates(examples, threshold=near, unit=unit, progress=advance)

    yield CurationStep("near duplicates", {"of": unit, "similarity": near}, run)


def _decontamination(curation: Curation, bar: Progress) -> Iterator[CurationStep]:
    if not curation.tasks:
        return
    settings = DecontaminationSettings(curation.documents, curation.ngram, curation.bm25)
    reading = advancing(bar, "reading the evaluation", len(curation.tasks))
    evaluation = Evaluation(curation.tasks, settings, progress=reading)

    def run(examples: Sequence[Example]) -> Outcome:
        return decontaminate(examples, evaluation, advancing(bar, "decontamination", len(examples)))

    shown = {"against": evaluation.names, "texts": evaluation.texts, **settings._asdict()}
    yield CurationStep("decontamination", shown, run)


def _consistency(curation: Curation, bar: Progress) -> Iterator[CurationStep]:
    name = curation.teacher
    if name is None:
        return
    teacher = None if name == BM25 else ModelTeacher(name, curation.device)

    def run(examples: Sequence[Example]) -> Outcome:
        pairs = [example for example in examples if not isinstance(example, RowText)]
        if not pairs:
            return Outcome(list(examples), [])
        passages = consistency.sample_passages(pairs, curation.pool, curation.seed)
        advance = advancing(bar, f"consistency among {len(passages):,} passages", len(pairs))
        if teacher is None:
            ranks = consistency.ranks_by_bm25(pairs, passages, advance)
        else:
            ranks = consistency.ranks_by_vectors(pairs, passages, teacher, progress=advance)
        return consistency.drop_inconsistent(examples, ranks, top_k=curation.top_k)

    yield CurationStep("consistency", {"teacher": name, "top_k": curation.top_k, "pool": curation.pool}, run)


_MAKERS = (_lengths, _languages, _duplicates, _decontamination, _consistency)
