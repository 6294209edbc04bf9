"""The tasks that a name on the command line can mean."""

from collections.abc import Callable, Mapping

from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.countdown import Countdown
from nalar.tasks.problem import Task

TASKS: Mapping[str, Callable[[], Task]] = {"countdown": Countdown, "chain_sum": ChainSum}
"""By task id, each in its default configuration."""
