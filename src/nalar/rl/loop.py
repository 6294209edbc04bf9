"""The loop of RL: collect, update, report. The engine reads the parameters that the update moves."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from nalar.data.tokenizer import Tokenizer
from nalar.engine.engine import Engine
from nalar.engine.turns import MakeEnvironment
from nalar.machine import keep_old_objects
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.optim.schedule import lr_factor
from nalar.rl.collector import Collector
from nalar.rl.config import RLConfig
from nalar.rl.correction import Mismatch
from nalar.rl.curriculum import Curricula
from nalar.rl.group import Carried
from nalar.rl.progress import RLProgress, progress
from nalar.rl.reference import Reference
from nalar.rl.rollout import Collected, Rollout, draw_problems
from nalar.rl.scorers import Scorers
from nalar.rl.step import UpdateMetrics, teach, update
from nalar.rl.store import Replay, save_rollouts
from nalar.tasks.problem import Problem, Task

OnStep = Callable[[RLProgress, list[list[Rollout]]], None]
"""Told what a step reports, and all groups that became whole in it."""


class Source(Protocol):
    """Where a step's groups come from."""

    def load(self, params: Mapping[str, Tensor], version: int) -> None:
        """These are the parameters of the policy from now on."""
        ...

    def collect(self, number: int) -> Collected:
        """The groups of this step, counted from 0."""
        ...


def train_rl(
    model: Transformer,
    optimizer: MuonClip,
    engine: Engine,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    config: RLConfig,
    *,
    seed: int,
    first_step: int,
    on_step: OnStep,
    should_stop: Callable[[], bool],
    reference: Reference | None = None,
    teacher: Transformer | None = None,
    carried: Carried | None = None,
    save_dir: Path | None = None,
    make_environment: MakeEnvironment | None = None,
    scorers: Scorers | None = None,
) -> int:
    """Run steps first_step.. until config.steps or told to stop; returns steps done in all.

    reference: needed where `config.kl` has a coefficient; made of the model before step 0, or restored.
    teacher: needed where `config.distil` names one.
    carried: what the steps before have left; moved on by every step. save_dir: where rollouts are kept.
    scorers: needed where `config.reward` names models that score.
    """

    carried = Carried() if carried is None else carried
    curricula = Curricula(tasks, config.curriculum, carried.levels)

    def draw(number: int, again: int) -> list[Problem]:
        return draw_problems(curricula.of(tasks), config.prompts_per_step, seed, number, again)

    def see(progress: RLProgress, groups: list[list[Rollout]]) -> None:
        curricula.see(groups)
        carried.levels = curricula.state()
        on_step(progress, groups)

    collector = Collector(
        engine,
        tokenizer,
        tasks,
        config,
        draw,
        seed=seed,
        carried=carried,
        make_environment=make_environment,
        scorers=scorers,
    )
    loop = _Loop(model, optimizer, collector, tasks, config, reference, teacher, save_dir)
    keep_old_objects()
    return loop.run(first_step, see, should_stop)


def replay_rl(
    model: Transformer,
    optimizer: MuonClip,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    config: RLConfig,
    folder: Path,
    *,
    first_step: int,
    on_step: OnStep,
    should_stop: Callable[[], bool],
    reference: Reference | None = None,
    teacher: Transformer | None = None,
) -> int:
    """The same on rollouts that were saved, without an engine. From the weights that the saved run began with it ends
    at that run's own, to the bit; the first step says how well the trainer agrees with who sampled them."""
    replay = Replay(folder, tokenizer, config.steps)
    loop = _Loop(model, optimizer, replay, tasks, config, reference, teacher, None)
    return loop.run(first_step, on_step, should_stop)


class _Loop:
    def __init__(
        self,
        model: Transformer,
        optimizer: MuonClip,
        source: Source,
        tasks: Sequence[Task],
        config: RLConfig,
        reference: Reference | None,
        teacher: Transformer | None,
        save_dir: Path | None,
    ) -> None:
        self._model, self._optimizer, self._source = model, optimizer, source
        self._tasks, self._config = tasks, config
        self._reference, self._teacher, self._save_dir = reference, teacher, save_dir

    def run(self, first_step: int, on_step: OnStep, should_stop: Callable[[], bool]) -> int:
        step, config = first_step, self._config
        self._source.load(self._model.state_dict(), version=step)
        while step < config.steps and not should_stop():
            collected = self._source.collect(step)
            updates, mismatch = self._updates(collected.groups, step)
            step += 1
            self._source.load(self._model.state_dict(), version=step)
            if self._save_dir is not None and _is_kept(step, config):
                save_rollouts(self._save_dir, step, collected)
            by_mode = bool(config.no_thinking_frac)
            report = progress(step, self._tasks, collected, updates, mismatch, by_mode=by_mode)
            on_step(report, collected.whole)
        return step

    def _updates(
        self, groups: list[list[Rollout]], step: int
    ) -> tuple[list[UpdateMetrics], Mismatch | None]:
        """One for each minibatch that has something to teach; how far the sampler was from the trainer before them."""
        config, model = self._config, self._model
        if config.rollout.debug == "rollout_only":
            return [], None
        model.train()
        if self._reference is not None:
            self._reference.follow(model, step, config)
        shares, mismatch = teach(model, groups, config, self._reference, self._teacher)
        done = []
        for i, share in enumerate(shares):
            at, total = step * config.minibatches + i, config.steps * config.minibatches
            factor = lr_factor(config.schedule, at, total)
            metrics = update(model, self._optimizer, share, config, lr_factor=factor)
            if metrics is not None:
                done.append(metrics)
        return done, mismatch


def _is_kept(step: int, config: RLConfig) -> bool:
    """Whether the rollouts of this step, counted from 1, are to be saved."""
    every = config.rollout.save_every_steps
    return every is not None and (step % every == 0 or step in (1, config.steps))
