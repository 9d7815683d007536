"""The steps of a curation, in their one order: cheap ones first, what needs a model last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.progress import Progress

from embedforge.curate import consistency, duplicates, language, lengths
from embedforge.curate.decontaminate import NGRAM, Evaluation, Settings, decontaminate
from embedforge.curate.evaluation_texts import DOCUMENTS, Documents, EvaluationTask
from embedforge.curate.lengths import UNITS, Limits, Unit
from embedforge.curate.outcome import Outcome
from embedforge.curate.teacher import BM25, ModelTeacher
from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError, did_you_mean


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


class Step(NamedTuple):
    """One step, ready to be run."""

    name: str
    settings: dict[str, Any]
    run: Callable[[Sequence[Example], Progress], Outcome]


def check(curation: Curation) -> None:
    """Refuse values that no step can work with.

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
        ("--near", curation.near, curation.near is None or 0 < curation.near <= 1, "above 0 and at most 1"),
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


def planned(curation: Curation) -> list[Step]:
    """Return the steps that the curation asks for, in their order.

    Lengths, languages, exact duplicates, near duplicates, decontamination, consistency.

    Raises:
        EmbedforgeError: a value that a step cannot work with, or no step at all.
    """
    check(curation)
    steps = [step for make in _MAKERS for step in make(curation)]
    if not steps:
        raise EmbedforgeError(
            "nothing to do: every step is off. Name one: --near, --languages, --query-length, "
            "--document-length, --against, --teacher, or leave --no-exact out"
        )
    return steps


def _lengths(curation: Curation) -> Iterator[Step]:
    query, document = curation.query_length, curation.document_length
    if query is None and document is None:
        return
    settings = {"query": str(query or Limits()), "document": str(document or Limits()), "unit": curation.unit}
    measure = lengths.measure_of(curation.unit, curation.tokenizer)
    yield Step(
        "lengths",
        settings,
        lambda examples, _: lengths.drop_lengths(
            examples, query or Limits(), document or Limits(), measure, curation.unit
        ),
    )


def _languages(curation: Curation) -> Iterator[Step]:
    if not curation.languages:
        return
    guess = language.detector(curation.languages)
    settings = {"languages": list(curation.languages), "confidence": curation.language_confidence}
    yield Step(
        "languages",
        settings,
        lambda examples, _: language.drop_languages(
            examples, curation.languages, guess, confidence=curation.language_confidence
        ),
    )


def _duplicates(curation: Curation) -> Iterator[Step]:
    unit, near = curation.duplicates_of, curation.near
    if curation.exact:
        yield Step(
            "exact duplicates",
            {"of": unit},
            lambda examples, _: duplicates.drop_exact_duplicates(examples, unit=unit),
        )
    if near is None:
        return

    def run(examples: Sequence[Example], bar: Progress) -> Outcome:
        row = bar.add_task("near duplicates", total=len(examples))
        return duplicates.drop_near_duplicates(
            examples, threshold=near, unit=unit, progress=lambda done: bar.advance(row, done)
        )

    yield Step("near duplicates", {"of": unit, "similarity": near}, run)


def _decontamination(curation: Curation) -> Iterator[Step]:
    if not curation.tasks:
        return
    settings = Settings(curation.documents, curation.ngram, curation.bm25)

    def run(examples: Sequence[Example], bar: Progress) -> Outcome:
        row = bar.add_task("reading the evaluation", total=len(curation.tasks))
        evaluation = Evaluation(curation.tasks, settings, progress=lambda done: bar.advance(row, done))
        row = bar.add_task("decontamination", total=len(examples))
        return decontaminate(examples, evaluation, progress=lambda done: bar.advance(row, done))

    names = [task.name for task in curation.tasks]
    yield Step("decontamination", {"against": names, **settings._asdict()}, run)


def _consistency(curation: Curation) -> Iterator[Step]:
    name = curation.teacher
    if name is None:
        return

    def run(examples: Sequence[Example], bar: Progress) -> Outcome:
        passages = consistency.sample_passages(examples, curation.pool, curation.seed)
        row = bar.add_task(f"consistency among {len(passages):,} passages", total=len(examples))

        def advance(done: int) -> None:
            bar.advance(row, done)

        if name == BM25:
            ranks = consistency.ranks_by_bm25(examples, passages, advance)
        else:
            teacher = ModelTeacher(name, curation.device)
            ranks = consistency.ranks_by_vectors(examples, passages, teacher, progress=advance)
        return consistency.drop_inconsistent(examples, ranks, top_k=curation.top_k)

    yield Step("consistency", {"teacher": name, "top_k": curation.top_k, "pool": curation.pool}, run)


_MAKERS = (_lengths, _languages, _duplicates, _decontamination, _consistency)
