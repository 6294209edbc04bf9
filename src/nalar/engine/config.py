"""How much the engine may hold at once. Imports no torch."""

from nalar.config import Config, ConfigError


class EngineConfig(Config):
    """Limits of one engine."""

    max_num_seqs: int = 256
    """Sequences decoded together; further ones wait."""
    max_model_len: int
    """Cap on prompt tokens plus generated tokens of one sequence."""
    max_prefill_tokens: int = 16384
    """Prompt tokens in one prefill call, padding counted.

    A single longer prompt gets a call of its own.
    """

    def model_post_init(self, _context: object) -> None:
        for name, least in (("max_num_seqs", 1), ("max_model_len", 2), ("max_prefill_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    at=f"engine.{name}", got=str(getattr(self, name)), want=f"at least {least}"
                )
