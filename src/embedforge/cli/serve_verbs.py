"""A model behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Device, Dtype, app
from embedforge.model.folder import DEFAULT_MODEL


@app.command(epilog="Example: embedforge serve run/model --index index")
def serve(
    model: Annotated[
        str,
        typer.Argument(help="A model folder or a hub id, of any pooling; by default the packaged embedder."),
    ] = DEFAULT_MODEL,
    index: Annotated[
        str | None,
        typer.Option(help="What /v1/search and the page at / search: an index, or the folder of a run."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in, so add --api-key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDFORGE_API_KEY",
            help="Wanted of every request; better in the environment, where no list of processes shows it.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; the folder's name by default.")
    ] = None,
    tokens_per_batch: Annotated[
        int, typer.Option(min=1, help="Tokens of one forward pass, padding included.")
    ] = 8192,
    queue_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that may wait; above it requests get 429 with Retry-After.")
    ] = 262_144,
    max_texts: Annotated[int, typer.Option(min=1, help="Texts of one request.")] = 2048,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of one request.")] = 16 * 2**20,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Serve a model: OpenAI's /v1/embeddings, TEI's /embed, /v1/search, and a search page.

    Every answer names the contract it was made under. SIGTERM answers what was accepted, then ends.
    """
    from embedforge.model.folder import find_folder, require_model
    from embedforge.serve.settings import Limits

    limits = Limits(
        tokens_per_batch=tokens_per_batch, queue_tokens=queue_tokens, texts=max_texts, body_bytes=max_body
    )
    require_model(model)
    if index is not None and "://" not in index:
        _require_folder(Path(index))
    find_folder(model)  # before torch is imported, but last, as the hub may have much to send
    from embedforge.serve.run import serve as run

    run(
        model,
        index=index,
        host=host,
        port=port,
        api_key=api_key,
        name=name,
        limits=limits,
        device=device,
        dtype=dtype,
    )


def _require_folder(index: Path) -> None:
    from embedforge.errors import EmbedforgeError

    if not index.is_dir():
        raise EmbedforgeError(f"--index {index}: there is no such folder; embedforge index makes one")
