"""What answers a model in the middle of its response: tools, another speaker. Imports no torch."""

from collections.abc import Callable, Sequence
from typing import Protocol

from nalar.tasks.problem import Problem


class Environment(Protocol):
    """One sample's other side."""

    def reply(self, token_ids: Sequence[int]) -> tuple[int, ...] | None:
        """Ids to append where a sample has stopped, such as a tool's output; None: the response is over.

        token_ids: all ids behind the prompt, earlier replies included. The reply must follow from them alone: a sample
        that waits for a later policy, or for a run to be resumed, goes on with an environment that is made anew.
        How many replies there are, and how long, is the environment's affair. What would leave no room for a token
        under the cap on a response is not appended: the response then ends as one that was cut.
        """
        ...


MakeEnvironment = Callable[[Problem], Environment]
"""Called for each sample."""
