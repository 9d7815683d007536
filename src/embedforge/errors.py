"""Errors that are the user's to fix: the command line prints them as one message, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EmbedforgeError(Exception):
    """A problem with the user's input; the message says what, where, which value, and the way out."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the option nearest to `word`, or "" when none is near.

    >>> did_you_mean("temprature", ["temperature", "seed"])
    " Did you mean 'temperature'?"
    """
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def missing_extra(package: str, extra: str, purpose: str) -> EmbedforgeError:
    """Build the error for an optional dependency that is not installed."""
    return EmbedforgeError(
        f"{purpose} needs the package '{package}', which is not installed. "
        f"Install it with: pip install 'embedforge[{extra}]'"
    )
