import pytest

from nalar.server.ask import Thinking
from nalar.server.thinking_config import EffortConfig
from nalar.server.wire.chat import ChatRequest
from nalar.server.wire.messages import MessagesRequest
from nalar.server.wire.responses import ResponsesRequest

SAID = {"messages": [{"role": "user", "content": "say 12"}]}


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (ChatRequest, SAID | {"reasoning_effort": "low"}),
        (ChatRequest, SAID | {"reasoning": {"effort": "low"}}),
        (MessagesRequest, SAID | {"output_config": {"effort": "low"}}),
        (ResponsesRequest, {"input": "say 12", "reasoning": {"effort": "low"}}),
    ],
)
def test_an_effort_thinks_as_long_as_the_server_is_set_to_let_it(server_config, form, body):
    config = server_config.model_copy(update={"efforts": EffortConfig(low=7)})
    assert form.of(body).ask(config, seed=0).thinking == Thinking(True, 7)
