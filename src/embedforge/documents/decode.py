"""Bytes to text: UTF-8, what a byte order mark or the file declares, or Windows-1252 as a last resort."""

from __future__ import annotations

import codecs
import re

from embedforge.documents.find_files import PassedOver

MOST_CONTROLS = 0.01
MOST_ACCENTS = 0.3
"""Of the characters: more are no Western European text, but another encoding that we do not guess."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
_ACCENTS = re.compile(r"[^\x00-\x7f]")


def decode(source: bytes, declared: str | None = None) -> tuple[str, bool]:
    r"""Return a file's text with "\n" as line ends, and whether its encoding had to be guessed.

    Args:
        source: the file's bytes.
        declared: the encoding that the file names itself, tried after UTF-8.

    Raises:
        PassedOver: not text ("files_binary"), or in an encoding that cannot be told
            ("files_encoding_unknown").
    """
    text, guessed = _decoded(source, declared)
    if len(_CONTROLS.findall(text)) > MOST_CONTROLS * len(text) or "\0" in text:
        raise PassedOver("files_binary")
    if guessed and len(_ACCENTS.findall(text)) > MOST_ACCENTS * len(text):
        raise PassedOver("files_encoding_unknown")
    return text.replace("\r\n", "\n").replace("\r", "\n"), guessed


def _decoded(source: bytes, declared: str | None) -> tuple[str, bool]:
    marked = next((name for mark, name in _MARKS if source.startswith(mark)), None)
    if marked is None and b"\0" in source:
        raise PassedOver("files_binary")
    for encoding in filter(None, (marked or "utf-8", declared)):
        try:
            return source.decode(encoding), False
        except (UnicodeDecodeError, LookupError):
            continue
    try:
        return source.decode("cp1252"), True
    except UnicodeDecodeError:
        return source.decode("latin-1"), True  # bytes that cp1252 leaves free become control characters
