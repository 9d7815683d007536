"""From the journal's answers to Examples: a function of plan and journal, done anew after every run."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from embedforge.data.example import Example
from embedforge.documents.document import Chunk
from embedforge.synthesize.corpus import CorpusPlan, Neighbours
from embedforge.synthesize.duplicates import Duplicates
from embedforge.synthesize.filters import Draft, filters
from embedforge.synthesize.groups import Group
from embedforge.synthesize.journal import Journal
from embedforge.synthesize.languages import Detector
from embedforge.synthesize.parse import UnreadableError, parse_object
from embedforge.synthesize.plan import Item, Lookup, NoTask, Plan, Request, Sampling, fraction

SAMPLES = 4
"""Kept by group, and by filter, for reading."""
SAMPLED_QUERIES = 2000
"""Kept by group, for distances."""


@dataclass(frozen=True, slots=True)
class ExampleOutcome:
    """What became of one example of the plan."""

    index: int
    group: Group
    reason: str
    """The filter that dropped it; "" where it was kept."""
    detail: str = ""
    example: Example | None = None
    """What was kept, or was dropped by a filter of texts."""
    item: Item | None = None
    answer: str = ""


class Reservoir:
    """A few of many, drawn by a number that depends on each one's index alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, ExampleOutcome]] = []

    def add(self, outcome: ExampleOutcome) -> None:
        """Offer one."""
        entry = (-fraction("sample", outcome.index), outcome.index, outcome)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def values(self) -> list[ExampleOutcome]:
        """Return those drawn, in the order of the plan."""
        return sorted((outcome for _, _, outcome in self._heap), key=lambda outcome: outcome.index)


@dataclass(slots=True)
class Tally:
    """Counts and samples of outcomes, for the report."""

    wants_negatives: bool = True
    """Whether examples of a corpus should have a hard negative; a test set's have none."""
    planned: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    pending: Counter[str] = field(default_factory=Counter)
    dropped: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By group, then by filter."""
    without_negative: Counter[str] = field(default_factory=Counter)
    """Kept examples that have no hard negative though their group asks for one."""
    languages: Counter[str] = field(default_factory=Counter)
    instructions: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    queries: defaultdict[str, Reservoir] = field(
        default_factory=lambda: defaultdict(lambda: Reservoir(SAMPLED_QUERIES))
    )
    kept_samples: defaultdict[str, Reservoir] = field(
        default_factory=lambda: defaultdict(lambda: Reservoir(SAMPLES))
    )
    dropped_samples: defaultdict[str, Reservoir] = field(
        default_factory=lambda: defaultdict(lambda: Reservoir(SAMPLES))
    )

    def add(self, outcome: ExampleOutcome) -> None:
        """Count one outcome."""
        name = outcome.group.name
        self.planned[name] += 1
        if outcome.reason == PENDING:
            self.pending[name] += 1
        elif outcome.reason:
            self.dropped[name][outcome.reason] += 1
            self.dropped_samples[outcome.reason].add(outcome)
        elif outcome.item is not None and outcome.example is not None:
            self._add_kept(name, outcome, outcome.item, outcome.example)

    def _add_kept(self, name: str, outcome: ExampleOutcome, item: Item, example: Example) -> None:
        self.kept[name] += 1
        from_corpus = item.passage is not None and self.wants_negatives
        wants_negative = "negative" in outcome.group.answer.values() or from_corpus
        self.without_negative[name] += wants_negative and not example.negatives
        self.languages[item.query_language or "as the passage"] += 1
        self.instructions[name].add(example.instruction)
        self.queries[name].add(outcome)
        self.kept_samples[name].add(outcome)


PENDING = "not asked yet"
NO_TASK = "no brainstorming answer held tasks; the last:"
_REFUSED = "refused by the endpoint"
_ENDED = {"length": "cut off at the token limit", "content_filter": _REFUSED, "refusal": _REFUSED}
"""Filters by why an answer ended that holds nothing."""


class Harvest:
    """Reads the plan's answers out of the journal and judges them.

    Args:
        plan: what was asked.
        journal: what was answered.
        sampling: of the requests.
        detector: of languages.
        negatives: whether the queries of a corpus get hard negatives.
    """

    def __init__(
        self, plan: Plan, journal: Journal, sampling: Sampling, detector: Detector, *, negatives: bool = True
    ) -> None:
        self._plan, self._journal, self._sampling = plan, journal, sampling
        self._filters = filters(detector)
        self._duplicates = Duplicates()
        self._neighbours = Neighbours(plan.passages) if isinstance(plan, CorpusPlan) and negatives else None
        self.used: set[str] = set()
        """Keys of the journal's answers that the plan has a use for."""

    def outcomes(self) -> Iterator[ExampleOutcome]:
        """Yield what became of each example, in the order of the plan."""
        lookup = lookup_in(self._journal, self._sampling, self.used)
        for index in range(len(self._plan)):
            step = self._plan.step(index, lookup)
            if isinstance(step, Item):
                yield self._judge(index, step)
            elif isinstance(step, NoTask):
                yield ExampleOutcome(index, step.group, "no task", NO_TASK, answer=step.answer)
            else:
                group = next(g for g in self._plan.groups() if g.name == step.request.group)
                yield ExampleOutcome(index, group, PENDING)

    def _judge(self, index: int, item: Item) -> ExampleOutcome:
        key = item.request.key(self._sampling)
        line = self._journal.get(key)
        if line is None:
            return ExampleOutcome(index, item.group, PENDING, item=item)
        self.used.add(key)
        if line["kind"] == "failure":
            return ExampleOutcome(index, item.group, _REFUSED, line["message"], item=item)
        answer = line["text"]
        try:
            fields = parse_object(answer, tuple(item.group.answer))
        except UnreadableError as error:
            reason = _ENDED.get(line["finish"], error.reason)
            return ExampleOutcome(index, item.group, reason, error.detail, item=item, answer=answer)
        draft, negative = self._draft(item, fields)
        reason, detail = self._drop(draft)
        example = example_of_draft(draft, item.passage, negative)
        return ExampleOutcome(index, item.group, reason, detail, example, item, answer)

    def _draft(self, item: Item, fields: Mapping[str, str]) -> tuple[Draft, Chunk | None]:
        roles = {role: fields[key] for key, role in item.group.answer.items()}
        negative = None
        if item.passage is not None:
            if self._neighbours is not None:
                negative = self._neighbours.negative(roles["query"], item.passage)
            roles |= {"positive": item.passage.text, "negative": negative.text if negative else ""}
        draft = Draft(
            item.group,
            item.instruction,
            roles["query"],
            roles["positive"],
            roles.get("negative", ""),
            item.query_language,
            item.document_language,
        )
        return draft, negative

    def _drop(self, draft: Draft) -> tuple[str, str]:
        for name, rule in self._filters.items():
            if detail := rule(draft):
                return name, detail
        return self._duplicates.check(draft)


def example_of_draft(draft: Draft, passage: Chunk | None, negative: Chunk | None) -> Example:
    """Return the Example; passages of a corpus keep their ids, by which they are known elsewhere."""
    return Example(
        query=draft.query,
        positives=(draft.positive,),
        negatives=(draft.negative,) if draft.negative else (),
        instruction=draft.instruction,
        source=draft.group.name,
        in_batch_negatives=draft.group.in_batch_negatives,
        symmetric=draft.group.symmetric,
        positive_ids=(passage.id,) if passage else (),
        negative_ids=(negative.id,) if negative else (),
    )


def lookup_in(journal: Journal, sampling: Sampling, used: set[str] | None = None) -> Lookup:
    """Return the function by which a plan looks up the answers of its requests."""

    def lookup(request: Request) -> str | None:
        key = request.key(sampling)
        line = journal.get(key)
        if line is None:
            return None
        if used is not None:
            used.add(key)
        return str(line.get("text", ""))

    return lookup
