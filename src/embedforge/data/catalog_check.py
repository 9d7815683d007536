"""Are the catalogue's datasets still on the hub? Asks for each one's facts; downloads no data.

Beyond that a dataset is there, its files and configurations are compared, as far as the hub lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from embedforge.data.catalog import Entry
from embedforge.errors import EmbedforgeError, missing_extra

TIMEOUT_SECONDS = 20.0


State = Literal["ok", "gated", "failed", "by hand"]


class Reached(NamedTuple):
    """What the hub said of one entry."""

    name: str
    state: State
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
    checked: list[Reached] = []
    unanswered = 0
    for name, entry in entries.items():
        checked.append(_check(name, entry, ask))
        if checked[-1].detail.startswith(_NO_ANSWER):
            unanswered += 1
        queried = sum(item.state != "by hand" for item in checked)
        if unanswered == queried == _TRIES:
            break
    if unanswered and unanswered == sum(item.state != "by hand" for item in checked):
        reason = checked[-1].detail.removeprefix(_NO_ANSWER)
        raise EmbedforgeError(
            f"the hub cannot be reached, so nothing was checked ({reason}). Check the network, and that "
            "HF_HUB_OFFLINE is not set"
        )
    return checked


_TRIES = 3
"""Datasets in a row, from the first, without an answer: then there is no network."""
_NO_ANSWER = "no answer: "


def _check(name: str, entry: Entry, ask: Callable[..., Any]) -> Reached:
    if entry.hub is None:
        return Reached(name, "by hand", entry.note)
    state, detail = _ask(entry.hub, ask, lambda info: _missing(entry, info))
    if state == "ok" and entry.corpus:
        other, what = _ask(entry.corpus, ask, lambda _: "")
        state, detail = other, f"{detail}, {what}" if other == "ok" else what
    return Reached(name, state, detail)


def _ask(dataset: str, ask: Callable[..., Any], missing: Callable[[Any], str]) -> tuple[State, str]:
    """Return what the hub says of a dataset, and what `missing` finds wrong with it."""
    import huggingface_hub.errors as hub

    try:
        info = ask(dataset, timeout=TIMEOUT_SECONDS)
    except hub.GatedRepoError:
        return "gated", f"{dataset} asks for an account's consent"
    except hub.RepositoryNotFoundError:
        return "failed", f"{dataset} is not there, or is private"
    except hub.HfHubHTTPError as error:
        return "failed", f"{dataset}: {str(error).splitlines()[0]}"
    except OSError as error:
        return "failed", f"{_NO_ANSWER}{error}"
    except Exception as error:
        # The client is httpx or httpx2, by the hub's version.
        if not type(error).__module__.startswith("httpx"):
            raise
        return "failed", f"{_NO_ANSWER}{error}"
    lost = missing(info)
    if lost:
        return "failed", f"{dataset}: {lost}"
    if getattr(info, "gated", False):
        return "gated", f"{dataset} asks for an account's consent"
    return "ok", f"{dataset} at {str(info.sha)[:8]}"


def _missing(entry: Entry, info: Any) -> str:
    """Say which files or configurations the entry names and the hub does not; "" where it lists none."""
    card = getattr(info, "card_data", None) or {}
    listed = {str(config.get("config_name")) for config in card.get("configs") or ()}
    wanted = ("corpus", "queries", "default") if entry.layout == "beir" else entry.configs
    files = {item.rfilename for item in getattr(info, "siblings", None) or ()}
    for what, names, known in (("configuration", wanted, listed), ("file", entry.files, files)):
        lost = [name for name in names if known and name not in known]
        if lost:
            return f"there is no {what} {', '.join(lost)}"
    return ""
