"""What every client of an HTTP endpoint shares: its address, its key, and its words without either's secrets.

A key comes from the environment and is held in memory only. Whatever an endpoint says may repeat it, and an
address may hold a password: nothing of that is printed or kept before it went through `Secret`
or `without_password`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from embedforge.errors import EmbedforgeError

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable with the key, where no other is named."""
NO_KEY = "none"
"""The `openai` package wants a key; endpoints without one do not look at it."""
MOST_CHARACTERS = 500
"""Of an endpoint's words in a message."""
_PASSWORD = re.compile(r"(?<=://)[^/\s@#?]*@")
_AFTER_NAME = re.compile(r"^((?:\w+://)?[^/:@\s]*):(?!//|\d*(?:[/?#]|$)).*|\?.*", re.DOTALL)
"""Of what is no address: what may be a password, whose letters ended the name of the host too early."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


class Secret:
    """A key, and what takes it out of an endpoint's words.

    >>> Secret("sk-1234").cleaned("no such key: sk-1234")
    'no such key: [key]'
    >>> str(Secret("sk-1234"))
    '[key]'
    """

    def __init__(self, key: str) -> None:
        self.key = key
        """ "" for none."""

    def __repr__(self) -> str:
        return "[key]" if self.key else "[no key]"

    def cleaned(self, message: str) -> str:
        """Return an endpoint's words in one line, shortened, without key and password."""
        message = without_password(" ".join(message.split()))
        for form in {self.key, quote(self.key, safe="")} if self.key else ():
            message = message.replace(form, "[key]")
        return message[:MOST_CHARACTERS]


def key_from_environment(variable: str | None) -> Secret:
    """Return the endpoint's key from the environment; an empty one where none was named and none is set.

    Raises:
        EmbedforgeError: the variable that was named is not set, or no header can hold what is in it.
    """
    if variable and not _VARIABLE.fullmatch(variable):
        raise EmbedforgeError(  # and no word of it: it may be the key
            "--key-variable takes the name of an environment variable, such as MY_KEY, and what was given is "
            "none; is it the key itself?"
        )
    key = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if variable and not key:
        raise EmbedforgeError(
            f"--key-variable: the environment has no {variable}; set it: export {variable}=..."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise EmbedforgeError(  # and no word of the key
            f"{variable or KEY_VARIABLE}: the key has a space, a line end or a letter outside ASCII "
            "in it, which no header can hold; was more copied than the key?"
        )
    return Secret(key)


def require_address(url: str, option: str, example: str) -> None:
    """Refuse what is no http address, and one with a secret in it, which would be written to files.

    Args:
        url: the address.
        option: for messages: "--endpoint".
        example: of an address.

    Raises:
        EmbedforgeError: it does not repeat a password.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.port != 0 and _is_host(parts.hostname)
    except ValueError:  # of the port, of brackets, of a name that cannot be
        is_address = False
    if not is_address:
        shown = _AFTER_NAME.sub(lambda found: f"{found[1]}:[...]" if found[1] else "", without_password(url))
        raise EmbedforgeError(f"{option}: '{shown}' is no address like {example}")
    if parts.username or parts.password or parts.query:
        raise EmbedforgeError(
            f"{option}: no user, password or query in the address; give a key by the environment"
        )


def is_address(name: str) -> bool:
    """Say whether a name is that of an endpoint, and not of a model here or on the hub."""
    return name.lower().startswith(("http://", "https://"))


def split_address(name: str) -> tuple[str, str]:
    """Return address and model of ADDRESS#MODEL; "" for no model.

    >>> split_address("http://h/v1#m"), split_address("http://h/v1")
    (('http://h/v1', 'm'), ('http://h/v1', ''))
    """
    url, mark, model = name.rpartition("#")
    return (url, model) if mark else (name, "")


def without_password(text: str) -> str:
    """Take user and password out of the addresses in a text.

    >>> without_password("http://me:secret@host/v1#m")
    'http://host/v1#m'
    """
    return _PASSWORD.sub("", text)


def _is_host(name: str | None) -> bool:
    return bool(name and name.encode("idna")) and not any(char.isspace() for char in name or "")


def error_words(body: Any) -> str:
    """Return what the body of an error says, in whichever of the usual places.

    >>> error_words({"error": {"message": "too long"}}), error_words({"error": "too long"})
    ('too long', 'too long')
    >>> error_words({"detail": "too long"}), error_words("<h1>Bad</h1>Gateway")
    ('too long', 'Bad Gateway')
    """
    while isinstance(body, Mapping) and (inner := _named(body)):
        body = inner
    return plain(body if isinstance(body, str) else json.dumps(body) if body else "")


def _named(body: Mapping[str, Any]) -> Any:
    return next((body[key] for key in ("error", "message", "detail") if body.get(key)), None)


def plain(text: str) -> str:
    """Return a page's words; other text as it is."""
    if text.lstrip().startswith("<"):
        text = _MARKUP.sub(" ", text)
    return " ".join(text.split())
