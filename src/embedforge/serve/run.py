"""`embedforge serve`: the application under uvicorn, warm before the first connection is accepted."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator

from embedforge.console import note
from embedforge.errors import EmbedforgeError, missing_extra
from embedforge.serve.settings import Limits


def serve(
    model: str,
    *,
    index: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    api_key: str | None = None,
    name: str | None = None,
    limits: Limits | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; what was accepted by then is answered first.

    Args:
        model: a folder that embedforge saved, or a hub id.
        index: see `create_app`.
        host: an address of this machine; the default lets nobody else in.
        port: 0 takes a free one.
        api_key: see `create_app`.
        name: that clients call the model by; the folder's name by default.
        limits: see `Limits`.
        device: "cpu", "cuda", ...
        dtype: of the weights; as saved when None.

    Raises:
        EmbedforgeError: the port is taken, the address is not this machine's, the key is unfit, or see
            `Service.load` and `create_app`.
    """
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or not api_key.strip()):
        raise EmbedforgeError("--api-key must be printable ASCII, since it travels in a header")
    with _bound(host, port) as listener:
        try:
            import uvicorn

            from embedforge.serve.app import create_app
        except ModuleNotFoundError as error:
            raise missing_extra(str(error.name), "serve", "serving a model") from None
        from embedforge.serve.service import Service

        service = Service.load(model, limits, name=name, device=device, dtype=dtype)
        app = create_app(service, index=index, api_key=api_key)
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        note(
            f"Serving {service.name}: {service.contract.pooling} pooling, {service.dim} numbers, "
            f"contract {service.fingerprint[:12]}\n"
            f"  {url}/v1/embeddings (OpenAI), /embed (TEI), /metrics, /openapi.json"
            + (f"\n  {url}/ is the search page" if index is not None else "")
        )
        if api_key is None and not _is_loopback(host):
            note(f"warning: {host} can be reached by others, and no --api-key keeps them out")
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=30)
        uvicorn.Server(config).run([listener])


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Take the port before the model is loaded; connections are refused until the server listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = str(error)
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                reason = "another program has it; choose one with --port, or 0 for any"
            raise EmbedforgeError(f"--host {host} --port {port}: {reason}") from None
        yield listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
