"""Texts of which no two are alike, for folders of documents."""

from __future__ import annotations

TOPICS = ["rivers", "castles", "engines", "violins", "harvests", "glaciers", "markets", "bridges", "lanterns"]


def sentence(*numbers: int) -> str:
    """A sentence that no other numbers give."""
    words = " ".join(
        f"{TOPICS[number % 9]} {chr(97 + number // 9 % 26)}{chr(97 + number % 26)}x" for number in numbers
    )
    return f"We saw how the {words} changed over many years."


def paragraph(seed: int, length: int = 6) -> str:
    return " ".join(sentence(seed, seed * 7 + n, n * 31 + seed * 3) for n in range(length))


def page(number: int, sections: int = 8) -> str:
    parts = [
        f"## The {TOPICS[n]} of year {chr(97 + number)}{n}\n\n{paragraph(number * 40 + n)}\n"
        for n in range(sections)
    ]
    return f"# Report {chr(97 + number)}{chr(98 + number)}\n\n" + "\n".join(parts)
