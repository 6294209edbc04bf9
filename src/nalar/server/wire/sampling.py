"""Fields that chats and completions share, and what they mean to the engine. Imports no torch."""

from typing import Any

from pydantic import Field

from nalar.config import UserError
from nalar.engine.sequence import SamplingParams
from nalar.server.config import SamplingDefaults, ServerConfig
from nalar.server.wire.body import Wire
from nalar.server.wire.errors import bad_request, of_user_error

MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MOST_TOKENS = 2**31 - 1
LOWEST_LOGPROB = -9999.0
"""JSON has no infinity."""


class StreamOptions(Wire):
    include_usage: bool = False


class SamplingFields(Wire):
    model: str | None = Field(default=None, max_length=512)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """-1 and 0: off, as clients of vLLM send it."""
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] = Field(default_factory=dict)
    seed: int | None = None
    stop: str | list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list, max_length=256)
    min_tokens: int = Field(default=0, ge=0, le=MOST_TOKENS)
    ignore_eos: bool = False
    cache_salt: str = Field(default="", max_length=512)
    priority: int = Field(default=0, ge=0, le=2**31 - 1)
    """Higher is later: nobody can put himself before others."""
    user: str | None = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop
        stops = tuple(dict.fromkeys(filter(None, given)))
        if len(stops) > MAX_STOPS:
            raise bad_request(f"stop: {len(stops)} strings; at most {MAX_STOPS}", "stop")
        return stops

    def params(self, config: ServerConfig, seed: int, **others: Any) -> SamplingParams:
        """For the engine, but for what depends on prompt and dialect. seed: where the request names none."""
        names = SamplingDefaults.model_fields
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        sampling = config.sampling.model_dump() | given
        if sampling["top_k"] in (-1, 0):
            sampling["top_k"] = None
        if (
            sampling["temperature"] > 100
        ):  # the engine divides by it: beyond, all tokens are equal anyway
            raise bad_request("temperature: wanted a number from 0 to 100", "temperature")
        if self.n > config.body.max_choices:
            raise bad_request(f"n: at most {config.body.max_choices}", "n")
        try:
            return SamplingParams(
                n=self.n,
                max_tokens=MOST_TOKENS,
                min_tokens=self.min_tokens,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                logit_bias=self._biases(),
                stop_token_ids=tuple(self.stop_token_ids),
                seed=seed if self.seed is None else self.seed % 2**63,
                **sampling,
                **others,
            )
        except UserError as error:
            raise of_user_error(error) from None

    def _biases(self) -> dict[int, float]:
        biases = {}
        for name, bias in self.logit_bias.items():
            if not name.isdecimal() or len(name) > 9 or not -100 <= bias <= 100:
                raise bad_request("logit_bias: wanted token ids with -100 to 100", "logit_bias")
            biases[int(name)] = bias
        return biases


def finite(logprob: float) -> float:
    """NaN, which a broken model draws by, is the lowest too."""
    return logprob if logprob >= LOWEST_LOGPROB else LOWEST_LOGPROB
