"""Which language a text is written in, by `py3langid`: statistics of letters, no network, no neural net."""

from __future__ import annotations

from functools import cache
from typing import Any

from embedforge.errors import missing_extra
from embedforge.synthesize.groups import close_languages, languages

LETTERS = 40
"""Texts with fewer letters are not judged: short ones are often mistaken. Three count in scripts without
letters for single sounds (Chinese, Japanese, Korean)."""
CERTAIN = 0.9
"""Least probability with which a text counts as written in a language."""


@cache
def _identifier() -> Any:
    """Load the package's model, once, and leave out languages that nobody asks for: fewer to confuse."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise missing_extra("py3langid", "synthesize", "checking the language of answers") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    wanted = {language.code for language in languages().values()} | {"nn"}
    identifier.set_languages(sorted(wanted & set(identifier.labels)))
    return identifier


class Detector:
    """Tells the languages of XLM-R apart, as far as the package's model knows them."""

    def __init__(self) -> None:
        self._identifier = _identifier()
        self.known = frozenset(self._identifier.labels)

    def language(self, text: str) -> str:
        """Return the ISO 639 code of a text's language, or "" where that is not certain."""
        letters = sum(3 if ord(char) > 0x2E7F else 1 for char in text if char.isalpha())
        if letters < LETTERS:
            return ""
        code, probability = self._identifier.classify(text)
        return str(code) if probability >= CERTAIN else ""

    def is_other(self, text: str, expected: str) -> str:
        """Return the code of the language that a text is in instead of the expected one; "" if it may be it.

        A language that the detector does not know, or confuses with the one found, is not held against it.
        """
        if expected not in self.known:
            return ""
        found = self.language(text)
        if not found or found == expected:
            return ""
        return "" if any({found, expected} <= close for close in close_languages()) else found
