"""The official `openai` client against a server on a socket, with a model that has learned nothing."""

import json

import openai
import pytest

from tests.server.serving import serving

MESSAGES = [{"role": "user", "content": "say 12"}]


@pytest.fixture(scope="module")
def server(model_folder):
    with serving(model_folder, "--served-model-name", "tiny", "alias") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_x(client):
    print(client.models.list().data[0].id)
    print(client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20, seed=1).choices)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"], "additionalProperties": False}}}]
    r = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=60, seed=1, tools=tools, tool_choice="required", reasoning_effort="none")
    print(r)
    r = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=60, seed=1, extra_body={"thinking_token_budget": 4}, response_format={"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"a":{"enum":[1,2]}},"required":["a"],"additionalProperties":False}}})
    print(r)
    r = client.completions.create(model="tiny", prompt=[[5,6,7],[8,9,10]], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234)
    print(r)
    assert 0
