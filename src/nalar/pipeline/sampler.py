"""A model on disk, ready to be sampled from and measured."""

from dataclasses import dataclass
from pathlib import Path

import torch

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig, SpeculationConfig
from nalar.engine.engine import Engine
from nalar.evals.config import EvalConfig
from nalar.evals.protocol import evaluate
from nalar.evals.results import TaskResult
from nalar.model.weights import load_model
from nalar.pipeline.base import refuse_foreign_ids
from nalar.pipeline.config import RunConfig
from nalar.pipeline.place import Place, place_of
from nalar.pipeline.tasks import EVAL_SEED
from nalar.pipeline.tools import environments
from nalar.sandbox.config import ToolsConfig
from nalar.tasks.problem import Split, Task

NO_TOOLS = ToolsConfig()


@dataclass(frozen=True)
class Sampler:
    """An engine and the tokenizer that its ids belong to."""

    engine: Engine
    tokenizer: Tokenizer


def load_sampler(
    folder: Path,
    config: RunConfig | None = None,
    *,
    speculation: SpeculationConfig | None = None,
) -> Sampler:
    """The model in a Hugging Face folder, for inference alone.

    config: of its run, on whose device, dtype and threads its figures repeat. The CPU where its GPU is not here.
    speculation: only "mtp" loads the blocks of multi-token prediction; ConfigError where the folder has none.
    """
    place = Place(torch.device("cpu"), torch.float32)
    if config is not None:
        torch.set_num_threads(config.threads)
        has_device = config.device != "cuda" or torch.cuda.is_available()
        place = place_of(config if has_device else config.model_copy(update={"device": "cpu"}))
    with_mtp = speculation is not None and speculation.method == "mtp"
    model = load_model(folder, device=place.device, dtype=place.dtype, with_mtp=with_mtp)
    model.eval().requires_grad_(False)
    tokenizer = Tokenizer.load(folder)
    refuse_foreign_ids(folder, tokenizer.vocab_size, model.config)
    limits = EngineConfig(
        max_model_len=model.config.max_position_embeddings, speculation=speculation
    )
    return Sampler(Engine(model, limits), tokenizer)


def measure(
    sampler: Sampler,
    task: Task,
    config: EvalConfig,
    *,
    split: Split,
    seed: int = EVAL_SEED,
    tools: ToolsConfig = NO_TOOLS,
) -> TaskResult:
    """The figures of one task. The same seed asks the same problems, the default those that a run asks itself.

    tools: what a response may call.
    """
    problems = task.problems(split, config.problems, seed)
    if not problems:
        raise UserError(
            at=f"task {task.id}",
            got=f"no problem in the split {split}",
            want="a split that has problems",
            hint="--split, or another setting of the task",
        )
    with torch.inference_mode():
        measured = evaluate(
            sampler.engine,
            sampler.tokenizer,
            task,
            problems,
            config,
            seed=seed,
            make_environment=environments(tools, sampler.tokenizer),
        )
    return measured.result
