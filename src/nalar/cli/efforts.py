"""What `--efforts` of a server says."""

from collections.abc import Sequence

from nalar.config import UserError, nearest
from nalar.server.thinking_config import EffortConfig

_NO_LIMIT = "none"


def effort_config(words: Sequence[str]) -> EffortConfig:
    """Of words such as `low=512` and `high=none`; efforts that are not named stay as they are. UserError for others."""
    budgets: dict[str, int | None] = {}
    for word in words:
        name, _, budget = word.partition("=")
        if name not in EffortConfig.model_fields:
            close = nearest(name, EffortConfig.model_fields)
            raise UserError(
                at="--efforts",
                got=word,
                want="one of " + ", ".join(EffortConfig.model_fields) + ", and its budget",
                hint=f"--efforts {close or 'low'}=512",
            )
        if budget != _NO_LIMIT and not (budget.isascii() and budget.isdecimal()):
            raise UserError(
                at="--efforts",
                got=word,
                want=f"a number of tokens behind {name}=, or {_NO_LIMIT}: no limit",
                hint=f"--efforts {name}=512",
            )
        budgets[name] = None if budget == _NO_LIMIT else int(budget)
    return EffortConfig(**budgets)
