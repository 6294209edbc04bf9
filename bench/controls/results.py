"""What the controls of a run came to, as `controls.json` holds it."""

from typing import Any

from pydantic import BaseModel

from nalar.evals.results import Estimate, Finite, TaskResult, estimate

FILE = "controls.json"
SEED = 7
"""Of the bootstraps here."""


class Shares(Finite):
    """A share for each test problem, in the order of the run's test problems."""

    by_problem: list[float]
    pass_at_1: Estimate

    @classmethod
    def of(cls, by_problem: list[float]) -> "Shares":
        return cls(by_problem=by_problem, pass_at_1=estimate(by_problem, seed=SEED))


class Outcome(TaskResult):
    """The figures of a task, and the share of correct samples of each problem."""

    by_problem: list[float]


class Control(Finite):
    """A model that was not made by RL, measured as the run measured its own."""

    tasks: dict[str, Outcome]
    tokens: int
    """Trained on or sampled to make it; 0 where the base is used as it is."""
    flops: float
    flops_of_rl: float
    """The same as a share of what RL used."""
    wall_s: float
    """To make and to measure it."""


class MorePretraining(Control):
    steps: int
    from_step: int


class Round(Finite):
    """One round of sampling and tuning."""

    sampled: int
    correct: int
    kept: int
    epochs: float
    optimizer_steps: int
    loss: float | None
    """Mean over the last epoch or part of one."""


class Tuning(Control):
    rounds: list[Round]


class Greedy(Finite):
    """Temperature 0, one sample a problem."""

    base: dict[str, Outcome]
    final: dict[str, Outcome]
    wall_s: float


class Blind(Shares):
    """Blind search under one limit."""

    repeats: bool
    max_tokens: int | None
    max_tries: float | None


class Ratio(Finite):
    """A share of `n` things, with an interval over problems; None where n is 0."""

    n: int
    mean: float | None
    ci95: tuple[float, float] | None


class Search(Finite):
    """What Countdown thoughts do. A hit is what the verifier calls one, whatever the mark beside it."""

    responses: int
    first_try_wrong: Ratio
    """Of responses with a marked try."""
    correct_after_first_wrong: Ratio
    """P(correct | first try wrong)."""
    correct_after_first_right: Ratio
    mean_tries: float
    repeated_tries: Ratio
    """Tries that stand earlier in the same thought."""
    steps_right: Ratio
    """Steps of tries whose arithmetic is right."""
    hits_marked: Ratio
    """Recall: of the tries that hit, marked as hits."""
    misses_marked_as_hits: Ratio


class SearchPair(Finite):
    base: Search
    final: Search


class LimitRow(Finite):
    """Model and blind search under one limit: tokens of a response, or tries of a thought."""

    limit: int
    base: Shares
    final: Shares
    final_greedy: Shares | None
    blind_repeats: Shares
    blind_no_repeats: Shares


class Routed(Finite):
    """A token that sampler and trainer sent to different experts."""

    margin: float
    """The router's score of the last expert chosen minus that of the first not chosen, in the trainer."""
    difference: float


class Agreement(Finite):
    """Log-probabilities recorded in sampling against the training forward on the same tokens, fp32."""

    rollouts: int
    tokens: int
    """Response tokens, those counted apart included."""
    max_difference: float
    """Over the tokens before which, and at which, all experts agree."""
    within_1e_5_frac: float
    rerouted: list[Routed]
    """First token of a sequence, prompt included, whose experts differ."""
    apart_tokens: int
    """Response tokens at or after such a token."""
    apart_max_difference: float | None
    first_log_ratio_rms: float | None
    """Largest over the run's RL steps: trainer against sampler before a step's first update."""


class Controls(BaseModel):
    """All parts; None where one has not been computed."""

    schema_version: int = 1
    commit: str | None = None
    threads: int | None = None
    rl_flops: float = 0.0
    blind: list[Blind] | None = None
    constant: dict[str, Any] | None = None
    guess: dict[str, Any] | None = None
    search: SearchPair | None = None
    tries: list[LimitRow] | None = None
    agreement: Agreement | None = None
    greedy: Greedy | None = None
    caps: list[LimitRow] | None = None
    base_forced: Control | None = None
    more_pretraining: MorePretraining | None = None
    rejection_sampling_sft: Tuning | None = None
