import subprocess
import sys

import pytest

from nalar.config import ConfigError
from nalar.optim.config import OptimConfig, ScheduleConfig

# pydantic wraps what a validator raises where that is a ValueError.
REFUSED = ConfigError


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_ceiling_on_logits_without_muonclip_is_refused(name):
    with pytest.raises(REFUSED, match="qk_clip_tau"):
        OptimConfig(name=name, qk_clip_tau=100.0)


def test_a_router_under_muon_without_muon_is_refused():
    with pytest.raises(REFUSED, match="router_group"):
        OptimConfig(name="adamw", router_group="muon")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("adamw_lr", -1.0),
        ("momentum", 1.0),
        ("ns_steps", 0),
        ("weight_decay", -0.1),
        ("adamw_betas", (0.9, 1.0)),
        ("qk_clip_tau", 0.0),
        ("clip_grad_norm", 0.0),
        ("lr", float("nan")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(REFUSED, match=f"optim.{field}"):
        OptimConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("warmup_steps", -1), ("stable_frac", 1.5), ("final_lr_frac", 0.0)]
)
def test_a_schedule_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(REFUSED, match=f"schedule.{field}"):
        ScheduleConfig(**{field: value})


def test_a_config_survives_json():
    config = OptimConfig(qk_clip_tau=30.0, adamw_betas=(0.8, 0.9))
    assert OptimConfig.model_validate_json(config.model_dump_json()) == config


def test_config_and_schedule_import_without_torch():
    code = "import sys, nalar.optim.config, nalar.optim.schedule; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
