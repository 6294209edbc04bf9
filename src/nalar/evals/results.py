"""What a measurement says, as files and programs read it. Imports no torch."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from nalar.stats import bootstrap_ci


class Finite(BaseModel):
    """The base of everything that a report holds: no nan, no infinity, so that any JSON reader can read it."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)


class Estimate(Finite):
    """A mean and its 95% interval by bootstrap over problems."""

    mean: float
    ci95: tuple[float, float]

    def overlaps(self, other: "Estimate") -> bool:
        """Whether the intervals share a point: if they do, neither is claimed to be better."""
        return self.ci95[0] <= other.ci95[1] and other.ci95[0] <= self.ci95[1]


class HeldOut(Finite):
    """The loss on dialogues that were not trained on. Only gains keys."""

    loss: float
    """Nats a token that the assistant chose."""
    dialogues: int


def estimate(values_per_problem: Sequence[float], *, seed: int) -> Estimate:
    """From one value a problem."""
    interval = bootstrap_ci(values_per_problem, seed=seed)
    return Estimate(mean=interval.mean, ci95=(interval.lo, interval.hi))


class TaskResult(Finite):
    """One task. Shares lie in [0, 1]."""

    n: int
    """Problems."""
    k: int
    """Samples of each."""
    pass_at_1: Estimate
    pass_at_k: Estimate
    maj_at_k: Estimate
    truncated_frac: float
    well_formed_frac: float
    mean_response_tokens: float
    self_check_frac: float | None
    """Share of responses in which a try marked wrong is followed by another; None where nothing is searched."""
    readable_frac: float | None = None
    """Of the responses whose thought has small words, the share that is in one language and does not loop; None where
    hardly a thought has any."""
    verifier_errors: int = 0
    """Responses without a verdict. They count as wrong here, so the figures are a lower bound where there are any."""
    timeouts: int = 0
    """Responses whose check, or whose own program, ran over its time."""
    tool_calls: float = 0.0
    """Calls of tools a response."""
    called_frac: float = 0.0
    """Share of responses that call a tool."""
    tool_error_frac: float = 0.0
    """Of the calls, answered by an error."""
    mean_thought_tokens: float | None = None
    """Drawn within thoughts, a response. None: from before this was measured."""
    longest_thought_tokens: int | None = None
    """Of the response that thought longest."""
    thought_frac: float | None = None
    """Share of responses that think. Asked without thinking: those in which any mark of a thought stands."""


class ProbeResult(Finite):
    """Shares lie in [0, 1]."""

    hits: int
    """Tries that were right, used each number and reached the target."""
    misses: int
    recall: float
    """Of the hits, marked as hits."""
    false_frac: float
    """Of the misses, marked as hits."""
    after_hit_correct_frac: float
    """Of the responses that marked a true hit, answered correctly."""
    pass_at_1: float
    passed: bool
    reason: str
    """Why it did not pass, or that it did."""
