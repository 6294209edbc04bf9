"""`nalar collect`: rejection sampling, a data set out of what a model answers well."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from nalar.cli import flags
from nalar.cli.choice import model_folder, open_run, stored_config
from nalar.cli.start import RunFlags, proceed, resumed_run
from nalar.config import UserError
from nalar.endpoint import EndpointConfig
from nalar.pipeline.collect_config import CollectConfig, RewriterConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collect(RunFlags):
    """Sample from MODEL, a run or a folder, on train problems; keep what is right and reads well, and write
    dataset.jsonl for `nalar sft`.

    Try, with a name that `nalar runs list` shows:

    nalar collect --model zero-cpu-1 --tasks countdown --problems-per-task 50 --run good
    """

    config: Annotated[CollectConfig, tyro.conf.arg(name="")]
    judge_url: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Of a chat API that writes thoughts anew, such as http://127.0.0.1:8000/v1: `rewrite` is judge then."""
    judge_model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which of its models: its name becomes the origin of what it wrote."""
    judge_key_env: Annotated[str | None, tyro.conf.arg(metavar="VARIABLE")] = None
    """The environment variable that holds its key. None: none is sent."""


def run(args: Sequence[str]) -> int:
    words = flags.gathered(args, "--tasks")
    name = resumed_run(words)
    config = stored_config(open_run(name), CollectConfig) if name else NOTHING_ASKED
    asked = flags.parse(Collect, words, verb="collect", default=Collect(config=config))
    config = _checked(asked)
    if name is None and flags.peek(words, "--tasks") is None:  # no task is everybody's
        want = "an id, a .jsonl file or a .py file: docs/tasks.md lists what there is"
        raise UserError(at="--tasks", got="no task", want=want)
    if flags.peek(words, "--model") is not None:
        config = config.model_copy(update={"model": str(model_folder(config.model))})
    return proceed("collect", asked, config, args)


NOTHING_ASKED = CollectConfig(model="", tasks=("countdown",))
"""What flags change."""


def _checked(asked: Collect) -> CollectConfig:
    config = asked.config
    if not config.model:
        want = "a run, or a folder with a model and its tokenizer"
        raise UserError(at="--model", got="no model", want=want)
    if asked.judge_url is None and asked.judge_model is None:
        return config
    if asked.judge_url is None or asked.judge_model is None:
        raise UserError(at="--judge-url", got="one of both", want="--judge-url and --judge-model")
    endpoint = EndpointConfig(
        base_url=asked.judge_url, model=asked.judge_model, api_key_env=asked.judge_key_env
    )
    judge = {"rewrite": "judge", "rewriter": RewriterConfig(endpoint=endpoint)}
    return CollectConfig.model_validate(config.model_dump() | judge)
