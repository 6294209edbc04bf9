"""`nalar sft`: fine-tune a model on dialogues."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from nalar.cli import flags
from nalar.cli.choice import model_folder, open_run, stored_config
from nalar.cli.start import RunFlags, proceed, resumed_run
from nalar.pipeline.config import SftConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sft(RunFlags):
    """Fine-tune MODEL, a run or a folder, on dialogues; only what the assistant says is learned.

    A line of a JSONL file is {"messages": [{"role": "user", "content": ...}, {"role": "assistant",
    "reasoning_content": ..., "content": ...}]}.

    Try, with a name that `nalar runs list` shows:

    nalar sft --model zero-cpu-1 --data DIALOGUES.jsonl --epochs 2 --lr 1e-3
    """

    config: Annotated[SftConfig, tyro.conf.arg(name="")]


def run(args: Sequence[str]) -> int:
    name = resumed_run(args)
    default = Sft(config=stored_config(open_run(name), SftConfig)) if name else None
    asked = flags.parse(Sft, args, verb="sft", default=default)
    config = asked.config
    if flags.peek(args, "--model") is not None:
        config = config.model_copy(update={"model": str(model_folder(config.model))})
    return proceed("sft", asked, config, args)
