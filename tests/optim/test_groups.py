import pytest
import torch

from nalar.config import ConfigError
from nalar.optim.config import OptimConfig
from nalar.optim.groups import group_parameters


def test_every_parameter_has_exactly_one_owner(tiny):
    groups = group_parameters(tiny.make().items(), OptimConfig())
    assert set(groups.adamw) == tiny.adamw | {tiny.router}
    assert set(groups.muon) == set(tiny.shapes) - tiny.adamw - {tiny.router}


def test_the_router_goes_where_the_config_says(tiny):
    groups = group_parameters(tiny.make().items(), OptimConfig(router_group="muon"))
    assert tiny.router in groups.muon
    assert tiny.router not in groups.adamw


def test_adamw_owns_everything_when_named(tiny):
    groups = group_parameters(tiny.make().items(), OptimConfig(name="adamw"))
    assert not groups.muon
    assert set(groups.adamw) == set(tiny.shapes)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_name_that_no_pattern_knows_is_refused_by_name(tiny, name):
    unknown = {"model.layers.0.self_attn.r_proj.weight": torch.zeros(2, 2)}
    with pytest.raises(ConfigError, match="r_proj"):
        group_parameters((tiny.make() | unknown).items(), OptimConfig(name=name))


def test_a_tied_tensor_is_refused_by_name(tiny):
    parameters = tiny.make()
    parameters["lm_head.weight"] = parameters["model.embed_tokens.weight"]
    with pytest.raises(ConfigError, match="lm_head"):
        group_parameters(parameters.items(), OptimConfig())


def test_a_vector_cannot_be_under_muon():
    with pytest.raises(ConfigError, match="o_proj"):
        group_parameters(
            {"model.layers.0.self_attn.o_proj.weight": torch.zeros(4)}.items(), OptimConfig()
        )
