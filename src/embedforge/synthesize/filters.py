"""What is dropped, each rule a pure function of a draft: it returns why, in words, or "" to keep it.

The paper drops what does not parse, and exact duplicates (`duplicates`). The rest is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from embedforge.synthesize.groups import Group
from embedforge.synthesize.languages import Detector
from embedforge.text.same import word_key
from embedforge.text.words import words_of

COPIED_WORDS = 5
"""A run of fewer words than this is not a copy: names and terms have to be the same in query and answer."""
COPIED_SHARE = 0.8
"""A query is copied if this share of its words stands in the document in one run."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An example as it was answered, before it is judged."""

    group: Group
    instruction: str
    query: str
    positive: str
    negative: str = ""
    """"" for none."""
    query_language: str = ""
    """ISO 639 code that was asked for; "" for the document's own."""
    document_language: str = ""
    """"" where the document was not written for us."""


def word_count(text: str) -> int:
    """Return the number of words; characters in scripts without spaces between words."""
    return len(words_of(text))


def wrong_length(draft: Draft) -> str:
    """Too few or too many words for the group."""
    texts = {"query": draft.query, "positive": draft.positive, "negative": draft.negative}
    for role, text in texts.items():
        least, most = draft.group.query if role == "query" else draft.group.document
        count = word_count(text)
        if count < least and (role != "negative" or text):
            return f"the {role} has {count} words, fewer than {least}"
        if count > most:
            return f"the {role} has {count} words, more than {most}"
    return ""


def query_equals_positive(draft: Draft) -> str:
    """Both sides are the same text."""
    return "the positive repeats the query" if word_key(draft.query) == word_key(draft.positive) else ""


def copied(draft: Draft) -> str:
    """The query stands in the document, or the document in the query: matching words would be enough.

    Not for symmetric groups, whose texts have to share words. A class label is copied at any length.
    """
    if draft.group.symmetric:
        return ""
    query, document = words_of(draft.query), words_of(draft.positive)
    if draft.group.label:
        return "the label stands in the text" if longest_run(document, query) == len(document) else ""
    needed = max(COPIED_WORDS, COPIED_SHARE * len(query))
    if len(query) >= COPIED_WORDS and longest_run(query, document) >= needed:
        return "the query stands in the document"
    needed = max(COPIED_WORDS, COPIED_SHARE * len(document))
    if len(document) >= COPIED_WORDS and longest_run(document, query) >= needed:
        return "the document stands in the query"
    return ""


def longest_run(query: list[str], within: list[str]) -> int:
    """Return the length of the longest run of the words `query` that stands in `within` in the same order.

    >>> longest_run(["a", "b", "c"], ["x", "b", "c"])
    2
    """
    positions: dict[str, list[int]] = {}
    for position, word in enumerate(within):
        positions.setdefault(word, []).append(position)
    best = 0
    ending: dict[int, int] = {}
    for word in query:
        ending = {position: ending.get(position - 1, 0) + 1 for position in positions.get(word, ())}
        best = max(best, *ending.values(), 0)
    return best


def useless_negative(draft: Draft) -> str:
    """The hard negative is the positive or the query."""
    if not draft.negative:
        return ""
    negative = word_key(draft.negative)
    if negative == word_key(draft.positive):
        return "the hard negative repeats the positive"
    return "the hard negative repeats the query" if negative == word_key(draft.query) else ""


def wrong_language(draft: Draft, detector: Detector) -> str:
    """A text is, for certain, not in the language that was asked for."""
    query_language = draft.query_language or detector.language(draft.positive)
    if query_language and (language := detector.is_other(draft.query, query_language)):
        return f"the query is in '{language}' instead of '{query_language}'"
    if not draft.document_language:
        return ""
    for role, text in (("positive", draft.positive), ("negative", draft.negative)):
        if language := detector.is_other(text, draft.document_language):
            return f"the {role} is in '{language}' instead of '{draft.document_language}'"
    return ""


def filters(detector: Detector) -> Mapping[str, Callable[[Draft], str]]:
    """Return the rules by their names, in the order of use; the first that holds counts."""
    return {
        "too short or too long": wrong_length,
        "query equals positive": query_equals_positive,
        "copied": copied,
        "hard negative equals positive or query": useless_negative,
        "wrong language": lambda draft: wrong_language(draft, detector),
    }
