"""Filters over metadata: "lang=en", "lang=en,de", "lang!=en", "year>=2020", "file=docs/*"."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.search.document import Value

_FORM = re.compile(r"\s*([^=!<>]*?)\s*(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
_COMMA = re.compile(r"(?<!\\),")
_ORDER = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on one field of the metadata; see `parse_filters`."""

    field: str
    sign: str
    """=, !=, <, <=, > or >=."""
    values: tuple[str, ...]
    """Of = and != any number, else one."""

    def holds(self, value: Value) -> bool:
        """Tell whether a document with this value passes.

        >>> year, file = parse_filters(["year>=2020", "file=docs/*,*.md"], ["year", "file"])
        >>> year.holds(2021), year.holds(1999), file.holds("README.md"), file.holds("a.py")
        (True, False, True, False)
        """
        if self.sign in _ORDER:
            if isinstance(value, str):
                return bool(_ORDER[self.sign](value, self.values[0]))
            number = number_of(self.values[0])
            return number is not None and bool(_ORDER[self.sign](float(value), number))
        return (self.sign == "=") == any(_equal(value, wanted) for wanted in self.values)


def parse_filters(filters: str | Sequence[str], fields: Collection[str]) -> list[Filter]:
    r"""Read filters, or a single one; all of them must hold.

    Args:
        filters: FIELD=VALUE, and != < <= > >= in place of =. Of = and != several values may stand with commas
            between them (any of them; a comma in a value is written "\,"), and * and ? stand for anything.
        fields: those that the index has.

    Raises:
        EmbedforgeError: no such form, or no such field.
    """
    parsed = []
    for text in [filters] if isinstance(filters, str) else filters:
        form = _FORM.fullmatch(text)
        if form is None or not form[1]:
            raise EmbedforgeError(
                f"filter '{text}': write it as lang=en, lang!=en, year>=2020 or file=docs/*"
            )
        field, sign, value = form[1], form[2], form[3].strip()
        if field not in fields:
            known = f"it has: {', '.join(sorted(fields))}" if fields else "it has none"
            raise EmbedforgeError(
                f"filter '{text}': no document of this index has the field '{field}'; {known}."
                + did_you_mean(field, fields)
            )
        several = _COMMA.split(value) if sign in ("=", "!=") else [value]
        parsed.append(Filter(field, sign, tuple(part.strip().replace("\\,", ",") for part in several)))
    return parsed


def number_of(text: str) -> float | None:
    """Return the number that a text is, if it is one; true and false are 1 and 0."""
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    try:
        return float(text)
    except ValueError:
        return None


def _equal(value: Value, wanted: str) -> bool:
    if isinstance(value, str):
        return fnmatchcase(value, wanted.replace("[", "[[]"))
    number = number_of(wanted)
    return number is not None and float(value) == number
