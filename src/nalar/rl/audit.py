"""Do sampler and trainer send the same tokens to the same experts? Looked at on a few responses, by both passes."""

# T tokens of a response with its prompt · K experts a token · L layers with experts

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nalar.engine.config import EngineConfig
from nalar.engine.runner import cache_dtype, cache_layers
from nalar.kernels.documents import Documents
from nalar.kernels.paging import Paging
from nalar.model.moe import Router
from nalar.model.transformer import Transformer
from nalar.rl.rollout import Rollout


@torch.no_grad()
def rerouted_frac(model: Transformer, rollouts: Sequence[Rollout]) -> float | None:
    """Share of choices, one a token and layer, in which the two passes differ; None for a model without experts.

    The sampler's pass is that of decoding (attention over a cache in blocks), over the ids as they were sampled. Equal
    sets of experts in another order are equal.
    """
    routers = list(model.routers())
    if not routers or not rollouts:
        return None
    differ = total = 0
    was_training = model.training
    model.eval()
    for rollout in rollouts:
        ids = torch.tensor(
            [*rollout.prompt_ids, *rollout.response.token_ids[:-1]],
            device=model.head_weight.device,
        )
        with _noted(routers, "forward") as trained:
            model(ids, Documents.of([len(ids)], device=ids.device))
        with _noted(routers, "infer") as sampled:
            _decode(model, ids)
        for one, other in zip(trained, sampled, strict=True):
            same_T = (one.sort(-1).values == other.sort(-1).values).all(-1)
            differ += int((~same_T).sum())
            total += len(same_T)
    model.train(was_training)
    return differ / total


def _decode(model: Transformer, ids_T: Tensor) -> None:
    """One row of all tokens, as a step of the engine has rows: each sees the cache up to itself."""
    config = EngineConfig(max_model_len=len(ids_T))
    block_size = config.block_size
    blocks = -(-len(ids_T) // block_size)
    positions_T = torch.arange(len(ids_T), device=ids_T.device)
    paging = Paging(
        positions_T,
        positions_T + block_size,  # block 0 is nobody's
        tables_BM=torch.arange(1, blocks + 1, device=ids_T.device)[None],
        row_tokens=len(ids_T),
    )
    shape = (cache_layers(model, config), blocks + 1, block_size, model.config.cache_dim)
    model.extend(ids_T, torch.zeros(shape, dtype=cache_dtype(model), device=ids_T.device), paging)


@contextmanager
def _noted(routers: Sequence[Router], method: str) -> Iterator[list[Tensor]]:
    """The ids [T, K] that each call of a router's method chooses, in order."""
    ids: list[Tensor] = []

    def noting(choose: Callable[..., Any]) -> Callable[..., Any]:
        def noted(x_TD: Tensor) -> Any:
            chosen = choose(x_TD)
            ids.append(chosen[0].clone())
            return chosen

        return noted

    for router in routers:
        setattr(router, method, noting(getattr(router, method)))
    try:
        yield ids
    finally:
        for router in routers:
            delattr(router, method)
