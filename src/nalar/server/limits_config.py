"""How much may be under way and may wait. Imports no torch."""

from pydantic import Field

from nalar.config import Config


class AdmissionConfig(Config):
    """What all requests together may take, and what a key that says nothing of its own may."""

    max_running: int = Field(default=256, ge=1)
    """Choices (n times prompts) that the engine works on at once; others wait, and keys take turns."""
    max_queued: int = Field(default=512, ge=0)
    """Choices that may wait."""
    max_queued_tokens: int = Field(default=4 * 2**20, ge=1)
    """Prompt tokens of all that wait."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Of prompts and answers together."""
    max_parallel: int | None = Field(default=None, ge=1)
    """Choices of one key that are under way or wait. These three are of each key. None: no limit."""
    expected_completion_tokens: int = Field(default=1024, ge=1)
    """What an answer is taken to have, against `tokens_per_minute`, until its true length is known."""
