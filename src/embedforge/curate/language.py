"""Texts in other languages than those wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from embedforge.curate.outcome import Fault, Outcome, Part, judge_texts
from embedforge.data.example import Example
from embedforge.documents.language import Guess, LanguageDetector
from embedforge.errors import EmbedforgeError, did_you_mean

CONFIDENCE = 0.9
LEAST_CHARACTERS = 20
_JUDGED_CHARACTERS = 2000
"""The start of a text tells its language."""


def parse_languages(text: str) -> tuple[str, ...]:
    """Read "en" or "en, de": codes apart by commas, in either case.

    Raises:
        EmbedforgeError: an empty code.
    """
    codes = tuple(code.strip().lower() for code in text.split(","))
    if not all(codes):
        raise EmbedforgeError(f"--languages '{text}': an empty code; write en, or en,de")
    return codes


def detector(languages: Sequence[str]) -> Callable[[str], Guess]:
    """Return the function that guesses a text's language.

    Args:
        languages: those wanted; they must be known to the detector.

    Raises:
        EmbedforgeError: no such language, or py3langid is not installed.
    """
    language_detector = LanguageDetector("curate", "the language filter")
    known = sorted(language_detector.known)
    for language in languages:
        if language not in known:
            raise EmbedforgeError(
                f"--languages: '{language}' is no ISO 639-1 code that the detector knows; it knows "
                f"{', '.join(known)}.{did_you_mean(language, known)}"
            )
    return lambda text: language_detector.guess(text[:_JUDGED_CHARACTERS])


def drop_languages(
    examples: Sequence[Example],
    languages: Sequence[str],
    guess: Callable[[str], Guess],
    *,
    confidence: float = CONFIDENCE,
    least_characters: int = LEAST_CHARACTERS,
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Drop queries and documents that are in another language.

    A text stays if the detector is not sure (below `confidence`) or the text is too short to tell
    (`least_characters`): names, codes and single words have no language.
    """

    def judge(text: str, part: Part) -> Fault | None:
        if len(text) < least_characters:
            return None
        guessed = guess(text)
        if guessed.language in languages or guessed.probability < confidence:
            return None
        what = "query" if part == "query" else "document"
        return Fault(f"{what} in another language", f"{guessed.language}, {guessed.probability:.2f}")

    return judge_texts(examples, judge, progress)
