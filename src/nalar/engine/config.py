"""How much the engine may hold at once, and how it works. Names as in vLLM. Imports no torch."""

from pydantic import Field

from nalar.config import Config


class EngineConfig(Config):
    """Limits of one engine."""

    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences decoded together; further ones wait."""
    max_model_len: int = Field(ge=2)
    """Cap on prompt tokens plus generated tokens of one sequence."""
    max_num_batched_tokens: int = Field(default=8192, ge=1)
    """Tokens in one step. Sequences that decode come first, prompts get what is left, in chunks if need be."""
    block_size: int = Field(default=32, ge=1)
    """Tokens in one block of the cache: what sequences that begin alike can share."""
    num_blocks: int | None = Field(default=None, ge=2)
    """Blocks of the cache. None: enough for all sequences at full length, or what `memory_frac` allows."""
    memory_frac: float = Field(default=0.9, gt=0, le=1)
    """Of the memory that is free when the engine starts, the share that the cache may take."""
    enable_prefix_caching: bool = True
    """Keep full blocks of finished sequences, so that prompts that begin alike are not computed again."""
    deterministic: bool = False
    """The same request gives the same tokens and logprobs to the bit, whatever else is in the batch.

    Every token is computed as a row of a batch of fixed size, by one form of attention over tiles of
    fixed size: several times slower, most of all in prompts.
    """
