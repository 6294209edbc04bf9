"""How long each `reasoning_effort` may think. Imports no torch."""

from pydantic import Field

from nalar.config import Config


class EffortConfig(Config):
    """Tokens of thought at most, for each effort but `none`, which is thinking switched off. None: no limit."""

    minimal: int | None = Field(default=256, ge=0)
    low: int | None = Field(default=1024, ge=0)
    medium: int | None = Field(default=4096, ge=0)
    high: int | None = Field(default=None, ge=0)
    xhigh: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)
