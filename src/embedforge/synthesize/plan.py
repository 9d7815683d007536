"""What is asked: request i is a function of the seed and i, so restarts and concurrency change nothing.

Groups take turns by their shares, so the first n examples of a longer run are those of a shorter one. The
tasks of brainstorming prompt b serve a block of examples of its group, and no others: a prompt that fails
or is answered again later moves no other example to another task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from embedforge.documents.document import Chunk
from embedforge.synthesize.groups import (
    TASKS_SCHEMA,
    Group,
    Language,
    prompt,
    schema_of,
    tasks_serve,
)
from embedforge.synthesize.parse import parse_tasks

BRAINSTORM_TRIES = 3
"""How often tasks are asked for anew, with another seed, where an answer holds none."""
_SEEDS = 2**31
T = TypeVar("T")


class Sampling(NamedTuple):
    """Which model, and how its tokens are drawn; part of what makes a request the same as another."""

    model: str
    temperature: float = 1.0
    top_p: float = 1.0
    max_answer_tokens: int = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and the seed that the endpoint is given with it."""

    step: str
    """"brainstorm" or "generate"."""
    group: str
    prompt: str
    seed: int
    schema: Mapping[str, Any] = field(hash=False)

    def key(self, sampling: Sampling) -> str:
        """Return 32 hexadecimal digits that are equal for equal prompt, seed, model and settings only."""
        content = json.dumps([self.prompt, self.seed, *sampling], ensure_ascii=False)
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Item:
    """An example to be made: its last request, and what is known before its answer."""

    group: Group
    request: Request
    instruction: str
    query_language: str
    """ISO 639 code; "" where the passage's own language counts."""
    document_language: str
    values: Mapping[str, str]
    """What was drawn for the prompt's placeholders."""
    passage: Chunk | None = None
    """The passage of the user's documents that the query is written for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The brainstorming request that has to be answered before the item can be told."""

    request: Request


@dataclass(frozen=True, slots=True)
class NoTask:
    """An item for which no task could be had: every try was answered without one."""

    group: Group
    answer: str
    """The last of the answers."""


PlanStep = Item | Wanted | NoTask
Lookup = Callable[[Request], str | None]
"""Returns the text that answered a request; "" where it was refused for good, None if still unanswered."""


class Plan(Protocol):
    """A sequence of examples to be made."""

    def __len__(self) -> int:
        """How many."""

    def groups(self) -> Sequence[Group]:
        """The groups of the examples."""

    def step(self, index: int, lookup: Lookup) -> PlanStep:
        """Return what is to be asked next for example `index`, or its last request, answered or not."""


class PaperPlan:
    """Examples of the groups of E5-Mistral.

    Args:
        groups: which; their shares say how they take turns.
        languages: drawn for each example by their weights.
        examples: how many.
        seed: of everything that is drawn.
    """

    def __init__(
        self, groups: Sequence[Group], languages: Sequence[Language], examples: int, seed: int
    ) -> None:
        self._groups, self._languages, self._seed = tuple(groups), tuple(languages), seed
        self._turns = take_turns([group.share for group in groups], examples)
        self._tasks: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def groups(self) -> Sequence[Group]:
        """The groups of the examples."""
        return self._groups

    def step(self, index: int, lookup: Lookup) -> PlanStep:
        """Return the example's last request, or the brainstorming request that comes before."""
        which, number = self._turns[index]
        group = self._groups[which]
        if not group.brainstorm:
            return self._item(group, number, group.instruction)
        block, position = divmod(number, tasks_serve())
        tasks = self._tasks_of(group, block, lookup)
        if isinstance(tasks, Wanted | NoTask):
            return tasks
        return self._item(group, number, tasks[position % len(tasks)])

    def _tasks_of(self, group: Group, block: int, lookup: Lookup) -> list[str] | Wanted | NoTask:
        answer: str | None = ""
        for attempt in range(BRAINSTORM_TRIES):
            request = Request(
                "brainstorm",
                group.name,
                prompt(f"brainstorm-{group.name}"),
                seed_of(self._seed, "brainstorm", group.name, block, attempt),
                TASKS_SCHEMA,
            )
            answer = lookup(request)
            if answer is None:
                return Wanted(request)
            if answer not in self._tasks:
                self._tasks[answer] = parse_tasks(answer)
            if self._tasks[answer]:
                return self._tasks[answer]
        return NoTask(group, answer or "")

    def _item(self, group: Group, number: int, instruction: str) -> Item:
        here = (self._seed, group.name, number)
        values = {name: draw(options, *here, name) for name, options in group.placeholders.items()}
        if group.name == "bitext":
            source, target = self._two_languages(*here)
            values |= {"src_lang": source.name, "tgt_lang": target.name}
        else:
            source = target = draw_language(self._languages, *here, "language")
            values["language"] = source.name
        filled = {"task": instruction, **values} if group.brainstorm else values
        request = Request(
            "generate",
            group.name,
            prompt(f"generate-{group.name}", **filled),
            seed_of(*here),
            schema_of(tuple(group.answer)),
        )
        return Item(group, request, instruction, source.code, target.code, values)

    def _two_languages(self, *here: int | str) -> tuple[Language, Language]:
        source = draw_language(self._languages, *here, "src_lang")
        others = [language for language in self._languages if language != source]
        return source, draw_language(others, *here, "tgt_lang")


def take_turns(shares: Sequence[float], count: int) -> list[tuple[int, int]]:
    """Return for each of `count` examples its group and its number within the group.

    Each turn goes to the group that is furthest behind its share, so the counts of every prefix are within
    one of their shares (for two groups; close to it for more).

    >>> take_turns([2, 1], 5)
    [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1)]
    """
    counts = [0] * len(shares)
    turns = []
    for turn in range(count):
        behind = [share / sum(shares) * (turn + 1) - n for share, n in zip(shares, counts, strict=True)]
        which = behind.index(max(behind))
        turns.append((which, counts[which]))
        counts[which] += 1
    return turns


def seed_of(*parts: int | str) -> int:
    """Return a seed for the endpoint, in [0, 2**31), that depends on all of `parts`."""
    return int(fraction(*parts) * _SEEDS)


def draw(options: Sequence[T], *parts: int | str) -> T:
    """Choose one of the options, each with equal chance, as a function of `parts` alone."""
    return options[int(fraction(*parts) * len(options))]


def draw_language(options: Sequence[Language], *parts: int | str) -> Language:
    """Choose a language by the weights, as a function of `parts` alone."""
    left = fraction(*parts) * sum(language.weight for language in options)
    for language in options:
        left -= language.weight
        if left < 0:
            return language
    return options[-1]  # rounding


def fraction(*parts: int | str) -> float:
    """Return a number in [0, 1), 53 random bits that depend on all of `parts`."""
    content = json.dumps(parts).encode()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53
