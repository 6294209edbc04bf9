"""The policy that a KL term pulls towards: a copy of the weights that is made anew every so many steps."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from nalar.config import UserError
from nalar.model.transformer import Transformer
from nalar.rl.config import RLConfig


class Reference:
    """A frozen copy of a model, as large as the model itself and in its dtype."""

    def __init__(self, model: Transformer) -> None:
        self.model = deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def follow(self, model: Transformer, step: int, config: RLConfig) -> None:
        """Become the policy if a refresh is due at this step; call before the updates of every step."""
        every = config.kl.refresh_every_steps
        if every is not None and step and step % every == 0:
            self.model.load_state_dict(model.state_dict())

    def state(self) -> dict[str, Tensor]:
        """A copy, in main memory, of all that a resumed run needs."""
        return {
            name: torch.empty(x.shape, dtype=x.dtype).copy_(x)
            for name, x in self.model.state_dict().items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. UserError: it is of another model."""
        try:
            self.model.load_state_dict(dict(state))
        except RuntimeError as error:
            raise UserError(
                at="reference", got=str(error), want="the weights of this run's reference"
            ) from error
