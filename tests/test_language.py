"""The one language detector of curation and synthesis."""

from __future__ import annotations

import sys

import pytest

from embedforge.curate.language import detector
from embedforge.documents.language import LanguageDetector
from embedforge.errors import EmbedforgeError
from embedforge.synthesize import languages
from embedforge.synthesize.languages import Detector

DANISH = "Floden er så dyb på dette sted, at man ikke kan gå over den uden at svømme."


def test_fewer_languages_are_fewer_to_confuse() -> None:
    pytest.importorskip("py3langid", reason="the extra 'curate' is not installed")
    found = LanguageDetector("curate", "a test")
    assert {"en", "de", "zh", "da"} <= found.known
    assert found.guess(DANISH).language == "da"
    assert 0.9 < found.guess(DANISH).probability <= 1
    few = LanguageDetector("curate", "a test", among={"de", "zh", "no such language"})
    assert few.known == {"de", "zh"}
    assert few.guess(DANISH).language == "de"
    assert found.guess(DANISH).language == "da"


def test_without_the_package_each_user_names_its_own_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    languages._languages.cache_clear()
    with pytest.raises(EmbedforgeError, match=r"the language filter .*'embedforge\[curate\]'"):
        detector(("en",))
    with pytest.raises(EmbedforgeError, match=r"the language of answers .*'embedforge\[synthesize\]'"):
        Detector()
