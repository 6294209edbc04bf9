"""What an RL stage looks at beside its own steps: alarms, problems it is not trained on, experts chosen and idle."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Literal

from nalar.data.tokenizer import Tokenizer
from nalar.engine.engine import Engine
from nalar.engine.turns import MakeEnvironment
from nalar.evals.config import EvalConfig
from nalar.evals.protocol import Sample, evaluate
from nalar.model.transformer import Transformer
from nalar.pipeline.idle_experts import IdleExperts
from nalar.rl.alarms import Alarm, Watch
from nalar.rl.audit import rerouted_frac
from nalar.rl.config import RLConfig
from nalar.rl.rollout import Rollout
from nalar.run import Metric
from nalar.tasks.problem import Task

SEED = 11
"""Of held-out problems and their samples: the same at every look."""
AUDITED_TOKENS = 2048
"""Of prompts and responses together, about."""


class Vigil:
    """Watches one RL stage. Nothing of it lasts but what stands among the metrics."""

    def __init__(
        self,
        config: RLConfig,
        model: Transformer,
        engine: Engine | None,
        tokenizer: Tokenizer,
        tasks: Sequence[Task],
        count: Callable[[Sequence[Sequence[Sample]]], None],
        make_environment: MakeEnvironment | None = None,
    ) -> None:
        """engine: None: nothing is sampled, so held-out problems are not tried. count: told of all samples that are
        drawn for a look, so that they are in the bill. make_environment: what they talk to, as in RL.
        """
        self._count, self._make_environment = count, make_environment
        self._config, self._model, self._engine = config, model, engine
        self._tokenizer, self._tasks = tokenizer, tasks
        self._watch = Watch(config, str(model.head_weight.dtype).removeprefix("torch."))
        self._idle = IdleExperts()
        self.has_enough = False
        """An alarm was set off, and `rl.alarms.stop` says that one is enough."""

    def remember(self, metrics: Sequence[Metric]) -> None:
        """The steps before, where a stage goes on: what was said then is not said again."""
        for line in metrics:
            self._watch.see(line.step, line.values)

    def look(self, step: int, groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
        """What is only found out by looking, where it is time to: after `step` steps."""
        alarms = self._config.alarms
        found: dict[str, float] = {}
        if (
            alarms.audit_every_steps
            and step % alarms.audit_every_steps == 1 % alarms.audit_every_steps
        ):
            frac = rerouted_frac(self._model, _some(groups))
            found |= {} if frac is None else {"rerouted_frac": frac}
        every = alarms.held_out_every_steps
        if self._engine is not None and every and step % every == 0:
            found |= self._held_out(self._engine)
        return found

    def see(
        self, step: int, values: Mapping[str, float], idle: Sequence[tuple[int, int]] | None
    ) -> list[Alarm | str]:
        """What is wrong from this step on."""
        said: list[Alarm | str] = list(self._watch.see(step, values))
        self.has_enough |= bool(said) and self._config.alarms.stop
        if idle is not None and (warning := self._idle.see(idle)):
            said.append(warning)
        return said

    def _held_out(self, engine: Engine) -> dict[str, float]:
        """With thinking; without beside it, as a task of its own, where RL asks so too."""
        found = self._tried(engine, "on")
        if self._config.no_thinking_frac:
            found |= self._tried(engine, "off")
        return found

    def _tried(self, engine: Engine, thinking: Literal["on", "off"]) -> dict[str, float]:
        alarms, found = self._config.alarms, dict[str, float]()
        measuring = EvalConfig(
            tasks=tuple(task.id for task in self._tasks),
            problems=alarms.held_out_problems,
            k=alarms.held_out_k,
            max_tokens=self._config.max_tokens,
            thinking=thinking,
        )
        for task in {task.id: task for task in self._tasks}.values():
            problems = task.problems("valid", alarms.held_out_problems, SEED)
            if not problems:
                continue
            name = task.id if thinking == "on" else f"{task.id},thinking=off"
            measured = evaluate(
                engine,
                self._tokenizer,
                task,
                problems,
                measuring,
                seed=SEED,
                make_environment=self._make_environment,
            )
            self._count(measured.samples)
            found[f"held_out_pass_at_1/{name}"] = measured.result.pass_at_1.mean
            found[f"held_out_pass_at_k/{name}"] = measured.result.pass_at_k.mean
        return found


def _some(groups: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    """One response of each group, as long as there is room."""
    chosen, tokens = list[Rollout](), 0
    for rollout in (rollout for group in groups for rollout in islice(group, 1)):
        tokens += len(rollout.prompt_ids) + len(rollout.response)
        if chosen and tokens > AUDITED_TOKENS:
            break
        chosen.append(rollout)
    return chosen
