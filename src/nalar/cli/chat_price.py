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

    @classmethod
    def parse(cls, text: str) -> "Price":
        """Of three numbers with commas between; UserError where they are none."""
        try:
            numbers = [float(word) for word in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != 3 or not all(0 <= number < float("inf") for number in numbers):
            raise UserError(
                at="--price",
                got=repr(text),
                want="USD for a million tokens of input, cached input and output",
                hint="--price 0.56,0.14,2.24",
            )
        return cls(*numbers)

    def usd(self, usage: Usage) -> float:
        fresh = max(0, usage.prompt_tokens - usage.cached_tokens)
        return (
            fresh * self.input_usd
            + usage.cached_tokens * self.cached_usd
            + usage.completion_tokens * self.output_usd
        ) / 1e6
