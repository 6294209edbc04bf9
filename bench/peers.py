"""transformers generating, in the ways that its users have."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nalar.engine.sequence import Request

Run = Callable[[], object]
Ids = Sequence[tuple[int, ...]]

MOST_S = 30
"""A load that a peer has not answered by then is not waited for."""
WARM_UP_TOKENS = 16
BLOCK_SIZE = 256
"""Of transformers' cache, its own choice."""


def load(folder: Path, device: torch.device, dtype: torch.dtype, experts: str | None) -> Any:
    """experts: None for a model that has none, which refuses the word."""
    import transformers

    own = {} if experts is None else {"experts_implementation": experts}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", **own
    )
    return model.to(device).eval()


def generating(model: Any, ids: Ids, tokens: int, cache: str | None) -> Run:
    """`generate` with forced lengths at temperature 1; a static cache compiles the decode step on a GPU."""
    batch = torch.tensor(ids, device=model.device)
    own = {"cache_implementation": cache} if cache else {}

    @torch.inference_mode()
    def run() -> object:
        return model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            pad_token_id=0,
            **own,
        )

    return run


def padded_seconds(model: Any, requests: Sequence[Request], cache: str | None) -> float:
    """All at once, prompts padded on the left, everybody going on until the longest is done.

    Behind a round of a few tokens that warms up, compilation and a cache of the same size included.
    """
    longest = max(len(r.prompt_ids) for r in requests)
    missing = [longest - len(r.prompt_ids) for r in requests]
    padded = [[0] * n + list(r.prompt_ids) for n, r in zip(missing, requests, strict=True)]
    ids = torch.tensor(padded, device=model.device)
    gaps = torch.tensor(missing, device=model.device)
    mask = (torch.arange(longest, device=model.device) >= gaps[:, None]).long()
    tokens = max(r.params.max_tokens for r in requests)
    own = {"cache_implementation": cache} if cache else {}
    started = 0.0
    for most in (WARM_UP_TOKENS, tokens):
        _wait(model)
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=True,
                temperature=requests[0].params.temperature,
                top_k=0,
                pad_token_id=0,
                stopping_criteria=[_longer_than(longest + most)],
                **own,
            )
        _wait(model)
    return time.perf_counter() - started


def _longer_than(length: int) -> Callable[..., torch.Tensor]:
    def stops(ids: torch.Tensor, _scores: object, **_others: object) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= length, device=ids.device)

    return stops


def batched_seconds(model: Any, requests: Sequence[Request]) -> float:
    """transformers' continuous batching, each request with its own length, its manager started and warmed up.

    RuntimeError where it answers nothing, or not all of it in time.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    longest = [len(r.prompt_ids) + r.params.max_tokens for r in requests]
    # What all of them need; left to itself it sizes both by the memory that is free.
    sizes = ContinuousBatchingConfig(
        block_size=BLOCK_SIZE,
        num_blocks=sum(-(-n // BLOCK_SIZE) + 1 for n in longest),
        max_batch_tokens=8192,
    )
    model.set_attn_implementation("paged|sdpa")  # else it asks the network for other kernels
    settings: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=requests[0].params.temperature,
        top_k=0,
        max_new_tokens=max(r.params.max_tokens for r in requests),
        eos_token_id=-1,
        pad_token_id=0,
    )
    try:
        with model.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=sizes, timeout=10
        ) as manager:
            _answered(manager, requests[:8])
            started = time.perf_counter()
            _answered(manager, requests)
            return time.perf_counter() - started
    finally:
        model.set_attn_implementation("sdpa")


def _answered(manager: Any, requests: Sequence[Request]) -> None:
    started = time.perf_counter()
    for r in requests:
        manager.add_request(list(r.prompt_ids), max_new_tokens=r.params.max_tokens, eos_token_id=-1)
    left = len(requests)
    while left:
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            if result.error is not None:
                raise RuntimeError(result.error)
            left -= 1
        elif result is None and not manager.is_running():
            raise RuntimeError("its thread has ended")
        if time.perf_counter() - started > MOST_S:
            manager.stop(hard_stop=True, timeout=10)
            raise RuntimeError(f"{left} of {len(requests)} requests unanswered after {MOST_S} s")


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
