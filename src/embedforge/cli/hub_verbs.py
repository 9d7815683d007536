"""A model to a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import app


@app.command(epilog="Example: embedforge push mine/model NAME/my-embedder --dry-run")
def push(
    model: Annotated[Path, typer.Argument(help="The folder of a saved model.")],
    repo: Annotated[
        str, typer.Argument(metavar="NAME/MODEL", help="The repository; made if it is not there.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="For everybody to read; private otherwise.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it and show what would be sent; no network is used.")
    ] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "A model made with embedforge",
    check: Annotated[
        bool, typer.Option(help="Load the model first, and compare it with its goldens.")
    ] = True,
) -> None:
    """Send a model with its card to the Hugging Face hub, private unless --public is said.

    Only files of the model go; paths of this machine in recipe.json are cut to their last part. A public
    model needs a licence in its card. Log in first with: hf auth login.
    """
    from embedforge.console import say, stdout
    from embedforge.model.push import pack
    from embedforge.model.push import push as send

    parcel = pack(model, repo, public=public)  # before torch is imported: a mistake in it shows at once
    say(parcel.described, stdout())
    if check:
        from embedforge.model.encoder import load

        load(model, device="cpu")
        say("the model gives its goldens")
    if dry_run:
        say("dry run: nothing was sent")
        return
    say(send(parcel, message=message, say=say), stdout())
