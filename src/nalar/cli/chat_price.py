"""What a reply costs, where a price is given."""

from dataclasses import dataclass

from nalar.agent.speech import Usage
from nalar.config import UserError


@dataclass(frozen=True)
class Price:
    """USD for a million tokens."""

    input_usd: float
    cached_usd: float
    output_usd: float

    def __post_init__(self) -> None:
        numbers = (self.input_usd, self.cached_usd, self.output_usd)
        if not all(0 <= number < float("inf") for number in numbers):
            raise UserError(
                at="--prices",
                got=" ".join(map(str, numbers)),
                want="USD for a million tokens of input, cached input and output, each 0 or more",
                hint="--prices 0.56 0.14 2.24",
            )

    def usd(self, usage: Usage) -> float:
        fresh = max(0, usage.prompt_tokens - usage.cached_tokens)
        return (
            fresh * self.input_usd
            + usage.cached_tokens * self.cached_usd
            + usage.completion_tokens * self.output_usd
        ) / 1e6
