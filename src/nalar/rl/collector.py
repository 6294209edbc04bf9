"""From problems to scored groups: who is drawn in which step, what is dropped, what waits for the next policy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from nalar.data.dialogue import encode_prompt
from nalar.data.tokenizer import Tokenizer
from nalar.engine.engine import Engine
from nalar.engine.turns import MakeEnvironment
from nalar.rl.config import RLConfig, ScoredBy
from nalar.rl.group import Carried, Group
from nalar.rl.response import NOTHING
from nalar.rl.rollout import Collected, Rollout, is_silent, rewarded
from nalar.rl.sampler import Drawing, Sampler
from nalar.rl.scorers import Scorers
from nalar.rl.thinking import thinks
from nalar.rl.verdicts import Verdicts
from nalar.tasks.problem import Problem, Task

Draw = Callable[[int, int], Sequence[Problem]]
"""Given a step and how often it was drawn again: a problem for each place of the step."""


@dataclass
class _Step:
    """The groups of one step, each in a place of its own."""

    number: int
    open: list[Group]
    kept: list[tuple[Group, list[Rollout]]] = field(default_factory=list)
    dropped: list[list[Rollout]] = field(default_factory=list)
    num_begun: int = 0

    @property
    def taken(self) -> set[int]:
        return {group.slot for group in [*self.open, *(group for group, _ in self.kept)]}

    @property
    def num_whole(self) -> int:
        return len(self.kept) + sum(group.is_whole for group in self.open)

    @property
    def groups(self) -> list[list[Rollout]]:
        """Those to train on, by when they were begun: whichever came to its end first."""
        order = sorted(self.kept, key=lambda one: (one[0].step, one[0].again, one[0].slot))
        return [rollouts for _, rollouts in order]


class Collector:
    """Keeps `prompts_per_step` groups under way, and hands out those that are whole.

    What the engine computes in which of its steps follows from seed, step and tokens alone, never from a clock:
    verdicts come while it goes on, and are waited for where they decide.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        tasks: Sequence[Task],
        config: RLConfig,
        draw: Draw,
        *,
        seed: int,
        carried: Carried | None = None,
        make_environment: MakeEnvironment | None = None,
        scorers: Scorers | None = None,
    ) -> None:
        """carried: what earlier steps left unfinished; each step leaves there what it does not finish itself.

        scorers: the models that score, where the config names any.
        """
        if config.reward.models and scorers is None:
            raise ValueError("rl.reward names models that score, and there are none")
        self._scorers = scorers
        self._engine, self._tokenizer, self._tasks = engine, tokenizer, tasks
        self._config, self._draw, self._seed = config, draw, seed
        self._carried = Carried() if carried is None else carried
        self._drawing = _drawing(tokenizer, config, make_environment)

    def load(self, params: Mapping[str, Tensor], version: int) -> None:
        """The policy that draws from now on."""
        self._engine.load(params, version)

    def collect(self, number: int) -> Collected:
        """The groups of step `number`, drawn by the engine's policy of now: who was told of every step's weights has
        that version."""
        step = _Step(number, list(self._carried.unfinished))
        with (
            Verdicts(self._tokenizer, self._tasks, self._config.reward) as verdicts,
            Sampler(self._engine, self._drawing) as sampler,
        ):
            for group in step.open:
                sampler.begin(group)
            for again in range(self._config.rollout.max_refills + 1):
                self._fill(step, again, sampler)
                was_cut = run(sampler, verdicts, lambda: self._is_enough(step, sampler))
                self._sort(step, verdicts)
                if was_cut or len(step.kept) == self._config.prompts_per_step:
                    break
        self._carried.unfinished = step.open
        return Collected(
            version=number,
            groups=step.groups,
            dropped=step.dropped,
            num_begun=step.num_begun,
            num_unfinished=len(step.open),
            sampled_tokens=sampler.num_drawn,
        )

    def _fill(self, step: _Step, again: int, sampler: Sampler) -> None:
        """Begin a group in every place that is free."""
        problems, taken = self._draw(step.number, again), step.taken
        for slot, problem in enumerate(problems):
            if slot in taken:
                continue
            seed = _seed(self._seed * 100_003 + step.number, again * len(problems) + slot)
            thinking = thinks(self._config, seed=self._seed, step=step.number, slot=slot)
            group = _begun(self._tokenizer, self._config, problem, seed, thinking=thinking)
            group.step, group.again, group.slot = step.number, again, slot
            step.open.append(group)
            step.num_begun += 1
            sampler.begin(group)

    def _is_enough(self, step: _Step, sampler: Sampler) -> bool:
        """Whether what is unfinished may wait: not for longer than `max_staleness`, nor behind the last step, nor
        where an update would be left without a group."""
        config, limits = self._config, self._config.rollout
        if limits.step_tokens is None or sampler.num_tokens < limits.step_tokens:
            return False
        is_last = step.number + 1 >= config.steps
        is_due = any(
            step.number - group.step >= limits.max_staleness and not group.is_whole
            for group in step.open
        )
        return not (is_last or is_due) and step.num_whole >= config.minibatches

    def _scores(self, group: Group, number: int) -> list[Mapping[ScoredBy, float]] | None:
        """Of the step that a group becomes whole in, whichever it was begun in. None: models have no say in it."""
        reward = self._config.reward
        if self._scorers is None or not reward.models_count(number, self._config.steps):
            return None
        return self._scorers.scores(group, reward)

    def _sort(self, step: _Step, verdicts: Verdicts) -> None:
        """Reward what is whole; keep it, or drop it where it is to be replaced."""
        for group in step.open:
            verdicts.settle(group)
        for group in [group for group in step.open if group.is_whole]:
            rollouts = _rewarded(group, self._config, self._scores(group, step.number))
            if self._config.rollout.max_refills and is_silent(rollouts):
                step.dropped.append(rollouts)
            else:
                step.kept.append((group, rollouts))
        step.open = [group for group in step.open if not group.is_whole]


def collect(
    engine: Engine,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    problems: Sequence[Problem],
    config: RLConfig,
    *,
    seed: int,
    make_environment: MakeEnvironment | None = None,
) -> list[list[Rollout]]:
    """A whole group of `config.group_size` scored samples for each problem."""
    groups = [
        _begun(
            tokenizer,
            config,
            problem,
            _seed(seed, i),
            thinking=thinks(config, seed=seed, step=0, slot=i),
        )
        for i, problem in enumerate(problems)
    ]
    drawing = _drawing(tokenizer, config, make_environment)
    with Verdicts(tokenizer, tasks, config.reward) as verdicts, Sampler(engine, drawing) as sampler:
        for group in groups:
            sampler.begin(group)
        run(sampler, verdicts)
        for group in groups:
            verdicts.settle(group)
    return [_rewarded(group, config) for group in groups]


def run(
    sampler: Sampler, verdicts: Verdicts, is_enough: Callable[[], bool] = lambda: False
) -> bool:
    """Draw until all is whole or this is enough, and have verified what ends; whether something was left."""
    while not sampler.is_done:
        for group, i in sampler.step():
            verdicts.ask(group, i)
        if not sampler.is_done and is_enough():
            sampler.halt()
            return True
    return False


def _seed(seed: int, i: int) -> int:
    return seed * 1_000_003 + i


def _begun(
    tokenizer: Tokenizer, config: RLConfig, problem: Problem, seed: int, *, thinking: bool
) -> Group:
    messages = [{"role": "user", "content": problem.prompt}]
    prompt_ids = tuple(encode_prompt(tokenizer, messages, thinking=thinking))
    n = config.group_size
    return Group(problem, prompt_ids, seed, [NOTHING] * n, [None] * n, thinking=thinking)


def _drawing(
    tokenizer: Tokenizer, config: RLConfig, make_environment: MakeEnvironment | None
) -> Drawing:
    return Drawing(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        stop_token_ids=tokenizer.stop_ids,
        make_environment=make_environment,
    )


def _rewarded(
    group: Group, config: RLConfig, scores: Sequence[Mapping[ScoredBy, float]] | None = None
) -> list[Rollout]:
    verdicts = [one for one in group.judged if one is not None]
    return rewarded(
        group.problem,
        group.prompt_ids,
        group.responses,
        verdicts,
        config,
        scores,
        thinking=group.thinking,
    )
