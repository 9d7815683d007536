"""Training as one phase of a longer run: it goes on by itself, and Ctrl-C ends the whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from embedforge.console import say
from embedforge.data.example import Example
from embedforge.recipe import Recipe
from embedforge.runtime import release_freed_memory
from embedforge.train.run import Interrupted, train


def train_or_stop(
    recipe: Recipe,
    out: Path,
    *,
    source_folder: Path,
    console: Console,
    device: str | None = None,
    held_out: Sequence[Example] = (),
    seconds: Mapping[str, float] | None = None,
) -> Path:
    """Train, or go on training, in `out`, and return the model's folder; arguments as of `train`.

    For callers that keep the texts that they test on out of the data.

    Raises:
        EmbedforgeError: see `train`.
        KeyboardInterrupt: after Ctrl-C, with the state saved and a line on the console that says so.
    """
    release_freed_memory()
    try:
        return train(
            recipe,
            out,
            resume=True,
            device=device,
            source_folder=source_folder,
            held_out=held_out,
            own_test=True,
            seconds=seconds,
        )
    except Interrupted as stop:
        say(f"\n{stop}. The state is saved: run the same command again to go on.", console)
        raise KeyboardInterrupt from None
