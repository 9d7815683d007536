"""What a server is told: limits and names. Without torch, so that a mistake shows before a model loads."""

from __future__ import annotations

from dataclasses import dataclass

from embedforge.errors import EmbedforgeError


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a server takes in; beyond it a request is refused, never cut or dropped."""

    tokens_per_batch: int = 8192
    """Of one forward pass, padding included."""
    queue_tokens: int = 262_144
    """Of all requests that are accepted and not answered yet."""
    texts: int = 2048
    """Of one request; OpenAI's limit."""
    body_bytes: int = 16 * 2**20
    """Of one request."""
    searches: int = 256
    """Under way at a time."""

    def __post_init__(self) -> None:
        """Raise EmbedforgeError where a limit lets nothing through."""
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise EmbedforgeError(
                    f"serve: the limit {name} is {getattr(self, name)}, at least 1 is needed"
                )
        if self.queue_tokens < self.tokens_per_batch:
            raise EmbedforgeError(
                f"--queue-tokens {self.queue_tokens} is less than one batch (--tokens-per-batch "
                f"{self.tokens_per_batch}); raise the first or lower the second"
            )
