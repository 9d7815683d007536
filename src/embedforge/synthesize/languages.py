"""Whether a text is written in the language that was asked for, as far as that can be told."""

from __future__ import annotations

from functools import cache

from embedforge.documents.language import LanguageDetector
from embedforge.synthesize.groups import close_languages, languages

LETTERS = 40
"""Texts with fewer letters are not judged: short ones are often mistaken. Three count in scripts without
letters for single sounds (Chinese, Japanese, Korean)."""
CERTAIN = 0.9
"""Least probability with which a text counts as written in a language."""


@cache
def _languages() -> LanguageDetector:
    """Load the detector, once, without the languages that nobody asks for."""
    wanted = {language.code for language in languages().values()} | {"nn"}
    return LanguageDetector("synthesize", "checking the language of answers", wanted)


class Detector:
    """Tells the languages of XLM-R apart, as far as the package's model knows them."""

    def __init__(self) -> None:
        self._languages = _languages()
        self.known = self._languages.known

    def language(self, text: str) -> str:
        """Return the ISO 639 code of a text's language, or "" where that is not certain."""
        letters = sum(3 if ord(char) > 0x2E7F else 1 for char in text if char.isalpha())
        if letters < LETTERS:
            return ""
        guess = self._languages.guess(text)
        return guess.language if guess.probability >= CERTAIN else ""

    def is_other(self, text: str, expected: str) -> str:
        """Return the code of the language that a text is in instead of the expected one; "" if it may be it.

        A language that the detector does not know, or confuses with the one found, is not held against it.
        """
        if expected not in self.known:
            return ""
        detected = self.language(text)
        if not detected or detected == expected:
            return ""
        return "" if any({detected, expected} <= close for close in close_languages()) else detected
