"""The stages of the R1 recipe: their order, what each makes, and what R1's own cost, by the rows of its table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Makes = Literal["model", "data", "reward"]
Row = Literal["base", "zero", "data", "r1", "distillation"]


@dataclass(frozen=True)
class Stage:
    """One stage, as a reader knows it."""

    title: str
    makes: Makes
    model: str | None
    """What its model is called in the table of results (R1's own names); None where it is not measured."""
    ends_with: str
    """What its own run has done last when the stage is done."""
    row: Row
    """Of the cost table, arXiv:2501.12948v2, Table 7: R1-Zero, SFT data, R1; without base and distillation."""


STAGES: Mapping[str, Stage] = {
    "pretrain": Stage("Pretraining", "model", "base", "pretrain", "base"),
    "zero": Stage("Pure RL", "model", "zero", "rl", "zero"),
    "cold_start_data": Stage("Cold-start data", "data", None, "collect", "data"),
    "cold_start": Stage("Cold start", "model", "dev1", "held_out_after", "r1"),
    "rl1": Stage("RL for reasoning", "model", "dev2", "rl", "r1"),
    "rejection_sampling": Stage("Rejection sampling", "data", None, "collect", "data"),
    "sft": Stage("Fine-tuning", "model", "dev3", "held_out_after", "r1"),
    "preference_model": Stage("Preference model", "reward", None, "reward_test", "r1"),
    "safety_model": Stage("Safety model", "reward", None, "reward_test", "r1"),
    "rl2": Stage("RL for all uses", "model", "final", "rl", "r1"),
    "student": Stage("Pretraining of the student", "model", "student", "pretrain", "distillation"),
    "distil": Stage("Distillation", "model", "distilled", "held_out_after", "distillation"),
    "on_policy": Stage("On-policy distillation", "model", "on-policy", "rl", "distillation"),
}
"""In their order."""


@dataclass(frozen=True)
class Published:
    """A row of R1's own cost table."""

    title: str
    h800_hours: float
    usd: float


PUBLISHED: Mapping[Row, Published] = {
    "base": Published("DeepSeek-V3", 2_788_000, 5_576_000),
    "zero": Published("DeepSeek-R1-Zero", 101_000, 202_000),
    "data": Published("SFT data creation", 5_000, 10_000),
    "r1": Published("DeepSeek-R1", 41_000, 82_000),
}
"""As published, in hours of one H800 at 2 USD each; that of the base is V3's report's."""
ON_TOP: tuple[Row, ...] = ("zero", "data", "r1")
"""The rows that their total of 147,000 hours and 294,000 USD adds up."""
ROWS: Mapping[Row, str] = {
    "base": "The base",
    "zero": "R1-Zero",
    "data": "SFT data",
    "r1": "R1",
    "distillation": "Distillation",
}

MEASURE = "measure_"
"""Before a stage's name: the measurement of its model, which is a stage of the pipeline's own run."""
FOLDER = "stages"
"""In the pipeline's folder: one run a stage, by its name."""
DATASET = "dataset.jsonl"
"""What a stage that makes data leaves in its folder."""


def stage_of_model(model: str) -> str:
    """The stage that makes the model of this name."""
    return next(name for name, stage in STAGES.items() if stage.model == model)
