"""`nalar reward`: train a model that scores answers, and test it."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from nalar.cli import flags
from nalar.cli.choice import model_folder, open_run, stored_config
from nalar.cli.start import RunFlags, proceed, resumed_run
from nalar.pipeline.config import RewardRunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward(RunFlags):
    """Make a model that scores answers out of MODEL, a run or a folder, and test it on judgements it has not seen.

    A line of a JSONL file is {"messages": [{"role": "user", "content": ...}], "chosen": ..., "rejected": ...}, or
    {"messages": [..., {"role": "assistant", ...}], "safe": true} for --kind safety.

    Try, with a name that `nalar runs list` shows:

    nalar reward --kind preference --model zero-cpu-1 --data PAIRS.jsonl

    nalar reward --kind preference --model zero-cpu-1 --data procedural --pairs 2000
    """

    config: Annotated[RewardRunConfig, tyro.conf.arg(name="")]


def run(args: Sequence[str]) -> int:
    words = flags.gathered(args, "--tasks")
    name = resumed_run(words)
    default = Reward(config=stored_config(open_run(name), RewardRunConfig)) if name else None
    asked = flags.parse(Reward, words, verb="reward", default=default)
    config = asked.config
    if flags.peek(words, "--model") is not None:
        config = config.model_copy(update={"model": str(model_folder(config.model))})
    return proceed("reward", asked, config, args)
