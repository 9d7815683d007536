"""What a reader passes over, or takes otherwise than it is written: counted, and told to the user."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

logger = logging.getLogger(__name__)

Notes = Counter[str]
"""How often, by what: "documents without a text, passed over" -> 3."""

EMPTY_DOCUMENTS = "documents without a text, passed over"


def told(notes: Mapping[str, int]) -> str:
    """Return the notes as one sentence.

    >>> told({"documents without a text, passed over": 3, "grades below 0, taken as 0": 1})
    'documents without a text, passed over: 3; grades below 0, taken as 0: 1'
    """
    return "; ".join(f"{what}: {count:,}" for what, count in notes.items())


def warn(where: object, notes: Mapping[str, int]) -> None:
    """Log the notes on a file or dataset, if there are any."""
    if notes:
        logger.warning("%s: %s", where, told(notes))
