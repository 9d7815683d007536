"""What may be spent, counted over the whole journal: a second run counts on from the first."""

from __future__ import annotations

from dataclasses import dataclass

from embedforge.errors import EmbedforgeError
from embedforge.synthesize.journal import Spent


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits; None for none. Prices are for a million tokens, in whatever currency `max_cost` is in.

    Raises:
        EmbedforgeError: a cost without prices, or a limit that is not above 0.
    """

    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_tokens", "max_cost"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise EmbedforgeError(f"--{name.replace('_', '-')} must be above 0, found {value}")
        for name in ("price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise EmbedforgeError(f"--{name.replace('_', '-')} must not be below 0, found {value}")
        if (self.price_in is None) != (self.price_out is None):
            raise EmbedforgeError("--price-in and --price-out go together: give both, per million tokens")
        if self.max_cost is not None and self.price_in is None:
            raise EmbedforgeError("--max-cost needs --price-in and --price-out, per million tokens")

    def cost(self, spent: Spent) -> float | None:
        """Return the price of the tokens; None where no prices are known."""
        if self.price_in is None or self.price_out is None:
            return None
        return (spent.tokens_in * self.price_in + spent.tokens_out * self.price_out) / 1e6

    def reached(self, spent: Spent, under_way: int = 0) -> str:
        """Return which limit leaves no room for one more request, in words; "" where there is room.

        Requests under way count as spent for `max_requests`, which is therefore never exceeded. How many
        tokens they take is not known before they end: those limits can be exceeded by what is under way.
        """
        if self.max_requests is not None and spent.requests + under_way >= self.max_requests:
            return f"--max-requests {self.max_requests:,} is reached"
        tokens = spent.tokens_in + spent.tokens_out
        if self.max_tokens is not None and tokens >= self.max_tokens:
            return f"--max-tokens {self.max_tokens:,} is reached ({tokens:,} used)"
        cost = self.cost(spent)
        if self.max_cost is not None and cost is not None and cost >= self.max_cost:
            return f"--max-cost {self.max_cost:g} is reached ({cost:.4f} spent)"
        return ""
