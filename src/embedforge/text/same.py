"""What "the same text" means: three keys, each blind to more than the one before, and one hash.

| key | equal for texts that differ only in | used where |
| --- | --- | --- |
| `layout_key` | case, white space, the encoding of characters | mining and training know a document again |
| `word_key` | punctuation, width, hidden characters, markup as well | duplicates are dropped: C++ is not C# |
| `leak_key` | symbols as well | test questions are kept out: C++ and C# are one |

Texts that are equal by one are equal by those below it. No key is empty but that of a text of white space:
where there is nothing that a key looks at ("?!"), the key above it stands in, so that such texts do not all
become one.
"""

from __future__ import annotations

import hashlib
import unicodedata

from embedforge.text.words import words_and_symbols_of, words_of


def layout_key(text: str) -> str:
    """Return the text in Unicode's composed form, without case, with one space for any white space.

    >>> layout_key("Cre\u0300me  BRULEE!") == layout_key("cr\u00e8me brulee!")
    True
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def word_key(text: str) -> str:
    """Return the words and symbols with one space between; of a text with neither its `layout_key`.

    >>> word_key("*What* is  C++?"), word_key("what is C#"), word_key(" ?! ")
    ('what is c ++', 'what is c#', '?!')
    """
    return " ".join(words_and_symbols_of(text)) or layout_key(text)


def leak_key(text: str) -> str:
    """Return the words with one space between; of a text without one its `word_key`.

    >>> leak_key("What is C++?"), leak_key(":-)")
    ('what is c', ':-)')
    """
    return " ".join(words_of(text)) or word_key(text)


def stable_hash(*parts: str | int) -> int:
    """Return 64 bits that depend on the parts alone: the same in every process and on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))  # ("ab", "c") is not ("a", "bc")
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")
