"""One record of a user's data, with its place, so that every complaint names file, line and value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from embedforge.data.list_text import text_of_list
from embedforge.errors import EmbedforgeError, did_you_mean


@dataclass(frozen=True, slots=True)
class Record:
    """The values of one line or row, and where they stand.

    Values are as JSON has them; an empty cell of a CSV file and a null are None.
    """

    values: dict[str, Any]
    path: str
    number: int
    """Counted from 1."""
    unit: str = "line"
    """"line" of a text file or "row" of a table."""

    def error(self, message: str) -> EmbedforgeError:
        """Return (not raise) the error "file, line n: message"."""
        return EmbedforgeError(f"{self.path}, {self.unit} {self.number}: {message}")

    def require(self, key: str) -> Any:
        """Return the value of `key`; an absent key or a null is an error."""
        value = self.values.get(key)
        if value is None:
            state = f"'{key}' is empty" if key in self.values else f"there is no '{key}'"
            hint = "" if key in self.values else did_you_mean(key, self.values)
            raise self.error(f"{state}; the keys are: {', '.join(self.values) or 'none'}.{hint}")
        return value

    def text(self, key: str) -> str:
        """Return the text of `key`: a string with more than white space in it, otherwise unchanged."""
        return self.check_text(self.require(key), key)

    def check_text(self, value: Any, key: str) -> str:
        """Return `value` if it is usable text; `key` names it in the error."""
        if not isinstance(value, str):
            raise self.error(f"'{key}' must be text, found {_show(value)}")
        if not value.strip():
            raise self.error(
                f"'{key}' has no text besides white space ({value!r:.40}); fill or remove the record"
            )
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise self.error(
                f"'{key}' holds half of a surrogate pair, {value[error.start]!r} at character {error.start}, "
                "which no tokenizer can read; write the character itself"
            ) from None
        return value

    def optional_text(self, key: str) -> str:
        """Return the text of `key`, or "" where it is absent, null or holds nothing but white space."""
        value = self.values.get(key)
        is_blank = value is None or (isinstance(value, str) and not value.strip())
        return "" if is_blank else self.check_text(value, key)

    def identifier(self, key: str) -> str:
        """Return the id under `key`: a text, or a whole number, which is read as its digits."""
        return self.check_identifier(self.require(key), key)

    def check_identifier(self, value: Any, key: str) -> str:
        """Return `value` if it is an id; `key` names it in the error."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self.error(f"'{key}' is an id, and must be text or a whole number, found {_show(value)}")
        return self.check_text(value, key)

    def number_of(self, key: str) -> float:
        """Return the finite number of `key`; the digits of a CSV cell are read as one."""
        value = self.require(key)
        if isinstance(value, bool) or not isinstance(value, int | float | str) or "_" in str(value):
            raise self.error(f"'{key}' must be a number, found {_show(value)}")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise self.error(f"'{key}' must be a number, found {_show(value)}") from None
        if not math.isfinite(number):
            raise self.error(f"'{key}' must be a finite number, found {value!r:.60}")
        return number

    def label(self, key: str) -> str | int:
        """Return the class of `key`: its text, without white space around it, or its number."""
        value = self.require(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, list) or (isinstance(value, str) and text_of_list(value)):
            raise self.error(
                f"'{key}' is a list of labels, {value!r:.60}, and would be a class of its own; "
                "write a row for each of them"
            )
        return self.check_text(value, key).strip()

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Raise for the first key outside `known`."""
        known = list(known)
        for key in self.values:
            if key not in known:
                raise self.error(
                    f"unknown key '{key}' (value {self.values[key]!r:.60}); "
                    f"known are: {', '.join(known)}.{did_you_mean(key, known)}"
                )


def _show(value: Any) -> str:
    return f"{value!r:.60} ({type(value).__name__})"
