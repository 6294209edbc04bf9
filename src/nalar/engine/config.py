"""How much the engine may hold at once, and how it works. Names as in vLLM. Imports no torch."""

from typing import Literal

from pydantic import Field

from nalar.config import Config, ConfigError


class SpeculationConfig(Config):
    """Guesses at the next tokens, which the model checks in one step. What comes out is what would come without.

    The model draws its own token at every guessed place, with the random number of that place; guesses
    count as long as they are what it drew. Samples with rules that need every token before the next (a
    grammar, banned tokens, penalties) are not guessed for.
    """

    method: Literal["mtp", "ngram"]
    """mtp: by the model's own block of multi-token prediction, the first of them; for more than one token it is
    applied again. ngram: what followed when the newest tokens stood in prompt or output before."""
    num_speculative_tokens: int = Field(default=1, ge=1)
    """Guesses at most, for each sample in each step."""
    prompt_lookup_min: int = Field(default=2, ge=1)
    prompt_lookup_max: int = Field(default=4, ge=1)
    """ngram: how many of the newest tokens must have stood together before; the longest match is taken."""
    disable_by_batch_size: int | None = Field(default=None, ge=1)
    """Nothing is guessed in steps of more samples than this. None: always."""

    def model_post_init(self, _context: object) -> None:
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ConfigError(
                at="speculation.prompt_lookup_min",
                got=str(self.prompt_lookup_min),
                want=f"at most prompt_lookup_max={self.prompt_lookup_max}",
            )


class EngineConfig(Config):
    """Limits of one engine."""

    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences decoded together; further ones wait."""
    max_model_len: int = Field(ge=2)
    """Cap on prompt tokens plus generated tokens of one sequence."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one step. Sequences that decode come first, prompts get what is left, in chunks if need be.
    None: 16384 on a GPU, 8192 on a CPU."""
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
    speculation: SpeculationConfig | None = None
    """None: one token a step."""
    num_scheduler_steps: int | None = Field(default=None, ge=1, le=64)
    """Tokens that each sequence draws before the host looks, where none needs it in between (rules, top logprobs,
    prompts to compute). What was drawn behind the end of a sequence is dropped. None: 4. On a GPU the host's work for
    256 sequences then hides behind the device's, on a CPU it is a sixth of a step of 64."""
    enforce_eager: bool = False
    """On a GPU: launch every kernel of every step, instead of replaying steps that were recorded as CUDA graphs."""

    def model_post_init(self, _context: object) -> None:
        if self.speculation is not None and (self.num_scheduler_steps or 1) > 1:
            raise ConfigError(
                at="engine.num_scheduler_steps",
                got=f"{self.num_scheduler_steps}, with speculation",
                want="1, or to leave it out: how many guesses hold is known behind each step",
            )

    def settled(self, *, is_gpu: bool) -> "EngineConfig":
        """With numbers for what was left to the device."""
        tokens = 16384 if is_gpu else 8192
        steps = 4 if self.speculation is None else 1
        return self.model_copy(
            update={
                "max_num_batched_tokens": self.max_num_batched_tokens or tokens,
                "num_scheduler_steps": self.num_scheduler_steps or steps,
            }
        )

    @property
    def keeps_drafts(self) -> bool:
        """Whether a block of multi-token prediction has a layer in the cache."""
        return self.speculation is not None and self.speculation.method == "mtp"
