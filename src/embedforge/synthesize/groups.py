"""The groups of synthetic data and the languages they are written in: `prompts/groups.yaml` and its texts."""

from __future__ import annotations

from functools import cache
from importlib import resources
from string import Template
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt

from embedforge.errors import EmbedforgeError, did_you_mean

PAPER = ("short-long", "long-short", "short-short", "long-long", "sts", "bitext")
"""The groups of E5-Mistral."""
CORPUS = "corpus"
"""Queries for passages of the user's own documents."""
Role = Literal["query", "positive", "negative"]


class Kind(BaseModel):
    """A kind of query over a corpus, and the instruction that goes with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query_type: str
    instruction: str


class Group(BaseModel):
    """What is drawn for a prompt of the group, and what its answer means (`prompts/groups.yaml`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    share: float
    answer: dict[str, Role]
    """The keys of the answer, in their order."""
    placeholders: dict[str, tuple[str, ...]]
    query: tuple[int, int]
    """Least and most words that are kept."""
    document: tuple[int, int]
    brainstorm: bool = False
    instruction: str = ""
    symmetric: bool = False
    in_batch_negatives: bool = True
    label: bool = False
    kinds: tuple[Kind, ...] = ()


class Language(BaseModel):
    """A language by its English name, which prompts use, and its ISO 639 code, which the detector uses."""

    model_config = ConfigDict(frozen=True)

    name: str
    code: str
    weight: float
    """Chance relative to one of the rare languages."""


@cache
def groups() -> dict[str, Group]:
    """Return every group by its name."""
    values = _yaml("groups.yaml")
    return {name: Group(name=name, **group) for name, group in values.items() if isinstance(group, dict)}


@cache
def tasks_serve() -> PositiveInt:
    """Return how many examples the tasks of one brainstorming prompt serve."""
    return int(_yaml("groups.yaml")["tasks_serve"])


@cache
def languages() -> dict[str, Language]:
    """Return the languages of XLM-R by their names, with the paper's weights."""
    values = _yaml("languages.yaml")
    by_name = {}
    for kind in ("frequent", "rare"):
        for name, code in values[kind].items():
            weight = values["weights"].get(name, values["weights"][kind])
            by_name[name] = Language(name=name, code=code, weight=weight)
    return by_name


@cache
def close_languages() -> tuple[frozenset[str], ...]:
    """Return sets of language codes that a detector confuses on short text."""
    return tuple(frozenset(codes) for codes in _yaml("languages.yaml")["close"])


def choose_languages(names: tuple[str, ...]) -> tuple[Language, ...]:
    """Return the languages asked for: names, of equal weight, or "all" for the paper's 93 and their weights.

    Raises:
        EmbedforgeError: an unknown or repeated name.
    """
    known = languages()
    if names == ("all",):
        return tuple(known.values())
    by_lower = {name.lower(): name for name in known}
    chosen = []
    for name in names:
        if name.lower() not in by_lower:
            raise EmbedforgeError(
                f"--language: '{name}' is none of the {len(known)} languages known by their English names, "
                f"nor 'all' alone.{did_you_mean(name.capitalize(), known)}"
            )
        chosen.append(known[by_lower[name.lower()]].model_copy(update={"weight": 1.0}))
    if len(set(chosen)) < len(chosen):
        raise EmbedforgeError(f"--language: a language is named twice in {', '.join(names)}")
    return tuple(chosen)


def choose_groups(names: tuple[str, ...], *, languages: int, corpus: bool) -> tuple[Group, ...]:
    """Return the groups asked for; without names those of the paper, or the corpus's where there is one.

    bitext needs two languages: it is left out where it was not named and there is only one.

    Raises:
        EmbedforgeError: an unknown group, or one that the other settings leave nothing to do.
    """
    known = groups()
    if corpus and names:
        raise EmbedforgeError("--group chooses among the paper's groups; a --corpus is a group of its own")
    if corpus:
        return (known[CORPUS],)
    for name in names:
        if name not in PAPER:
            raise EmbedforgeError(
                f"--group: '{name}' is no group; there are {', '.join(PAPER)}.{did_you_mean(name, PAPER)}"
            )
    if len(set(names)) < len(names):
        raise EmbedforgeError(f"--group: a group is named twice in {', '.join(names)}")
    if "bitext" in names and languages < 2:
        raise EmbedforgeError("--group bitext needs two languages: --language English --language German")
    default = PAPER if languages > 1 else tuple(name for name in PAPER if name != "bitext")
    return tuple(known[name] for name in names or default)


@cache
def _template(name: str) -> Template:
    return Template(_read(f"{name}.txt"))


def prompt(name: str, **values: str) -> str:
    """Return the prompt of `prompts/NAME.txt` with its placeholders filled; one without a value raises."""
    return _template(name).substitute(values).strip()


def schema_of(keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON schema of an object that holds a text under each of the keys."""
    return {
        "type": "object",
        "properties": {key: {"type": "string"} for key in keys},
        "required": list(keys),
        "additionalProperties": False,
    }


TASKS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"tasks": {"type": "array", "items": {"type": "string"}}},
    "required": ["tasks"],
    "additionalProperties": False,
}
"""What a brainstorming prompt is answered with."""


@cache
def _yaml(name: str) -> Any:
    return yaml.safe_load(_read(name))


def _read(name: str) -> str:
    return resources.files("embedforge.synthesize").joinpath("prompts", name).read_text(encoding="utf-8")
