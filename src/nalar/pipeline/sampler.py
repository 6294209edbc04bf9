"""A model on disk, ready to be sampled from and measured."""

from dataclasses import dataclass
from pathlib import Path

import torch

from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.evals.config import EvalConfig
from nalar.evals.protocol import evaluate
from nalar.evals.results import TaskResult
from nalar.model.weights import load_model
from nalar.tasks.problem import Split, Task


@dataclass(frozen=True)
class Sampler:
    """An engine and the tokenizer that its ids belong to."""

    engine: Engine
    tokenizer: Tokenizer


def load_sampler(folder: Path) -> Sampler:
    """The model in a Hugging Face folder, for inference alone."""
    model = load_model(folder).eval().requires_grad_(False)
    limits = EngineConfig(max_model_len=model.config.max_position_embeddings)
    return Sampler(Engine(model, limits), Tokenizer.load(folder))


def measure(
    sampler: Sampler, task: Task, config: EvalConfig, *, split: Split, seed: int
) -> TaskResult:
    """The figures of one task. The same seed asks the same problems."""
    problems = task.problems(split, config.problems, seed)
    with torch.inference_mode():
        measured = evaluate(sampler.engine, sampler.tokenizer, task, problems, config, seed=seed)
    return measured.result
