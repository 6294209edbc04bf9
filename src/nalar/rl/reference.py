"""The policy that a KL term pulls towards: a copy of the weights that is made anew every so many steps."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from nalar.config import UserError
from nalar.model.lora import lasting
from nalar.model.transformer import Transformer
from nalar.rl.config import RLConfig


class Reference:
    """A frozen copy of a model in its dtype, as large as the model itself.

    Of a model with adapters it copies what training moves, and shares the rest.
    """

    def __init__(self, model: Transformer) -> None:
        shared = {id(x): x for x in lasting(model)}
        self.model = deepcopy(model, dict[int, Any](shared))
        self.model.requires_grad_(False)  # what is shared is frozen already
        tensors = self.model.state_dict(keep_vars=True)
        self._own = [name for name, x in tensors.items() if id(x) not in shared]

    @torch.no_grad()
    def follow(self, model: Transformer, step: int, config: RLConfig) -> None:
        """Become the policy if a refresh is due at this step; call before the updates of every step."""
        every = config.kl.refresh_every_steps
        if every is not None and step and step % every == 0:
            self.model.load_state_dict(model.state_dict())

    def state(self) -> dict[str, Tensor]:
        """A copy, in main memory, of all that a resumed run needs."""
        tensors = self.model.state_dict()
        return {
            name: torch.empty(tensors[name].shape, dtype=tensors[name].dtype).copy_(tensors[name])
            for name in self._own
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. UserError: it is of another model."""
        own = {*self._own}
        shared = {name: x for name, x in self.model.state_dict().items() if name not in own}
        try:
            self.model.load_state_dict(shared | dict(state))
        except RuntimeError as error:
            raise UserError(
                at="reference", got=str(error), want="the weights of this run's reference"
            ) from error
