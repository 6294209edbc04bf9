"""What a request costs, from three prices. Money is whole picodollars inside, so that sums are exact. No torch."""

from decimal import Decimal
from typing import Protocol

from pydantic import Field

from nalar.config import Config, ConfigError

PICODOLLARS = 10**12
"""In one US dollar. A price of six decimals a million tokens is a whole number of them a token."""
_TOKENS = 10**6
_DECIMALS = 6


class Counted(Protocol):
    """The tokens of a request, as its usage and its row in the ledger have them."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int:
        """Those of the prompt that were not computed again."""

    @property
    def completion_tokens(self) -> int:
        """The thought included."""


class PriceTable(Config):
    """US dollars a million tokens, as priced APIs have it. All 0: nothing has a price."""

    input_usd: float = Field(default=0.0, ge=0, le=1e6)
    """Of prompt tokens that had to be computed."""
    cached_input_usd: float | None = Field(default=None, ge=0, le=1e6)
    """Of prompt tokens that were found in the cache. None: as `input_usd`."""
    output_usd: float = Field(default=0.0, ge=0, le=1e6)
    """Of tokens that the model wrote, its thought included."""

    def model_post_init(self, _context: object) -> None:
        for name in ("input_usd", "cached_input_usd", "output_usd"):
            price = getattr(self, name)
            if price is not None and Decimal(str(price)) != round(Decimal(str(price)), _DECIMALS):
                raise ConfigError(
                    at=f"prices.{name}",
                    got=str(price),
                    want=f"at most {_DECIMALS} decimals: costs are added up exactly",
                    hint=f"{round(price, _DECIMALS)}",
                )

    def cost_usd(self, usage: Counted) -> float:
        """What these tokens cost. `picodollars` gives back the very sum that it stands for."""
        return usd(self.cost_picodollars(usage))

    def cost_picodollars(self, usage: Counted) -> int:
        """The same, exactly."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        cached = usage.cached_tokens * self._cached
        return fresh * _a_token(self.input_usd) + cached + self._output(usage.completion_tokens)

    def most_picodollars(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The most that a request of this size can cost: nothing cached, or all of it where that is dearer."""
        dearest = max(_a_token(self.input_usd), self._cached)
        return prompt_tokens * dearest + self._output(completion_tokens)

    @property
    def _cached(self) -> int:
        price = self.input_usd if self.cached_input_usd is None else self.cached_input_usd
        return _a_token(price)

    def _output(self, tokens: int) -> int:
        return tokens * _a_token(self.output_usd)


def _a_token(usd_per_million: float) -> int:
    return int(Decimal(str(usd_per_million)) * (PICODOLLARS // _TOKENS))


def picodollars(cost_usd: float) -> int:
    """Dollars as whole picodollars. Exact for what `usd` gave, up to a thousand dollars: a float has 53 bits."""
    return round(cost_usd * PICODOLLARS)


def usd(cost_picodollars: int) -> float:
    """The nearest float."""
    return cost_picodollars / PICODOLLARS
