"""The settings of the task families. Imports no torch."""

from pydantic import Field

from nalar.config import Config, ConfigError


class CountdownConfig(Config):
    """Reach a target with every given number used once."""

    num_numbers: int = Field(default=3, ge=2, le=6)
    """How many numbers a problem gives. Up to 3, where max_number is small, all problems are enumerated, else drawn."""
    max_number: int = Field(default=10, ge=2, le=100)
    """Numbers come from 1..max_number."""
    max_intermediate: int = Field(default=60, ge=2, le=10_000)
    """Every result on the way, the target included, lies in 1..max_intermediate."""
    operators: str = "+-*"
    """Operators from which problems and tries are made, a subset of `+-*/`; division only where it is exact."""

    def model_post_init(self, _context: object) -> None:
        if not self.operators or set(self.operators) - set("+-*/"):
            raise ConfigError(
                at="countdown.operators",
                got=repr(self.operators),
                want="some of the characters + - * /",
            )


class ChainSumConfig(Config):
    """Add up a chain of single digits."""

    min_terms: int = Field(default=5, ge=2)
    """Shortest chain."""
    max_terms: int = Field(default=7, le=50)
    """Longest chain, inclusive."""
    min_total: int = Field(default=0, le=0)
    """No running total is lower; a term that would go below is added instead."""

    def model_post_init(self, _context: object) -> None:
        if self.min_terms > self.max_terms:
            raise ConfigError(
                at="chain_sum.min_terms",
                got=str(self.min_terms),
                want=f"at most max_terms={self.max_terms}",
            )
