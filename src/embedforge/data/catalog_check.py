"""Are the catalogue's datasets still on the hub? Asks for each one's facts; downloads no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from embedforge.data.catalog import Entry
from embedforge.errors import EmbedforgeError, missing_extra

TIMEOUT_SECONDS = 20.0


class Reached(NamedTuple):
    """What the hub said of one entry."""

    name: str
    state: Literal["ok", "gated", "failed", "by hand"]
    detail: str


def check_entries(entries: Mapping[str, Entry], api: Any | None = None) -> list[Reached]:
    """Ask the hub for every entry that has an id there.

    Args:
        entries: by name.
        api: a `huggingface_hub.HfApi`; the public hub's when None.

    Raises:
        EmbedforgeError: no network, or huggingface_hub is told to stay offline.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise missing_extra("huggingface_hub", "data", "checking the catalogue") from None
    ask = (api or huggingface_hub.HfApi()).dataset_info
    found: list[Reached] = []
    unanswered = 0
    for name, entry in entries.items():
        found.append(_check(name, entry, ask))
        if found[-1].detail.startswith(_NO_ANSWER):
            unanswered += 1
        asked = sum(item.state != "by hand" for item in found)
        if unanswered == asked == _TRIES:
            break
    if unanswered and unanswered == sum(item.state != "by hand" for item in found):
        reason = found[-1].detail.removeprefix(_NO_ANSWER)
        raise EmbedforgeError(
            f"the hub cannot be reached, so nothing was checked ({reason}). Check the network, and that "
            "HF_HUB_OFFLINE is not set"
        )
    return found


_TRIES = 3
"""Datasets in a row, from the first, without an answer: then there is no network."""
_NO_ANSWER = "no answer: "


def _check(name: str, entry: Entry, ask: Callable[..., Any]) -> Reached:
    import huggingface_hub.errors as hub

    if entry.hub is None:
        return Reached(name, "by hand", entry.note)
    try:
        info = ask(entry.hub, timeout=TIMEOUT_SECONDS)
    except hub.GatedRepoError:
        return Reached(name, "gated", f"{entry.hub} asks for an account's consent")
    except hub.RepositoryNotFoundError:
        return Reached(name, "failed", f"{entry.hub} is not there, or is private")
    except hub.HfHubHTTPError as error:
        return Reached(name, "failed", f"{entry.hub}: {str(error).splitlines()[0]}")
    except OSError as error:
        return Reached(name, "failed", f"{_NO_ANSWER}{error}")
    except Exception as error:
        if not type(error).__module__.startswith(
            "httpx"
        ):  # the client is httpx or httpx2, by the hub's version
            raise
        return Reached(name, "failed", f"{_NO_ANSWER}{error}")
    if getattr(info, "gated", False):
        return Reached(name, "gated", f"{entry.hub} asks for an account's consent")
    return Reached(name, "ok", f"{entry.hub} at {str(info.sha)[:8]}")
