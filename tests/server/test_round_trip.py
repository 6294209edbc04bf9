"""What a model drew comes back in the history as the ids that it drew, whichever API the history came by."""

import json
from typing import ClassVar

import pytest

from nalar.data.dialogue import encode_call, encode_output

SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Chat:
    path = "/v1/chat/completions"
    off: ClassVar = {"thinking": {"type": "disabled"}}

    def __init__(self):
        self.history = [{"role": "user", "content": "say 12"}]

    def body(self):
        function = {"name": "f", "parameters": SCHEMA}
        return {"messages": self.history, "tools": [{"type": "function", "function": function}]}

    def take(self, reply, output):
        message = reply["choices"][0]["message"]
        call = message["tool_calls"][0]["id"]
        self.history += [message, {"role": "tool", "tool_call_id": call, "content": output}]


class Forgetful(Chat):
    """As clients that know no thoughts keep a history."""

    def take(self, reply, output):
        reply["choices"][0]["message"].pop("reasoning_content", None)
        super().take(reply, output)


class Messages(Chat):
    path = "/v1/messages"

    def body(self):
        tool = {"name": "f", "input_schema": SCHEMA}
        return {"messages": self.history, "tools": [tool], "max_tokens": 99}

    def take(self, reply, output):
        result = {"tool_use_id": reply["content"][-1]["id"], "content": output}
        self.history += [
            {"role": "assistant", "content": reply["content"]},
            {"role": "user", "content": [{"type": "tool_result", **result}]},
        ]


class Responses(Chat):
    path = "/v1/responses"
    off: ClassVar = {"reasoning": {"effort": "none"}}

    def body(self):
        tool = {"type": "function", "name": "f", "parameters": SCHEMA}
        return {"input": self.history, "tools": [tool]}

    def take(self, reply, output):
        call = reply["output"][-1]["call_id"]
        result = {"type": "function_call_output", "call_id": call, "output": output}
        self.history += [*reply["output"], result]


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("api", [Chat, Forgetful, Messages, Responses])
async def test_a_call_in_an_empty_thought_comes_back_as_it_was_drawn(
    make_client, scripted, tokenizer, api, thinking
):
    drawn = [list(encode_call(tokenizer, "f", text)) for text in ("12", "34", "5")]
    if thinking and api is not Forgetful:
        drawn[1] = [*tokenizer.encode("is"), *drawn[1]]
    link = scripted(drawn)
    client, asked = make_client(link), api()
    for output in ("34", "5", "6"):
        reply = await client.post(asked.path, json=asked.body() | ({} if thinking else asked.off))
        asked.take(reply.json(), output)
    prompts = [list(request.prompt_ids) for request in link.requests]
    for number, output in enumerate(("34", "5")):
        gone_on = prompts[number] + drawn[number] + list(encode_output(tokenizer, output))
        assert prompts[number + 1] == gone_on


@pytest.mark.parametrize("path", [Chat.path, Messages.path, Responses.path])
async def test_a_stream_names_an_empty_thought_before_its_call(
    make_client, scripted, tokenizer, path
):
    asked = next(api for api in (Chat, Messages, Responses) if api.path == path)()
    client = make_client(scripted([list(encode_call(tokenizer, "f", "12"))]))
    reply = await client.post(path, json=asked.body() | {"stream": True})
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    told = [
        *(e["choices"][0]["delta"].get("reasoning_content") for e in events if "choices" in e),
        *(e["content_block"].get("thinking") for e in events if "content_block" in e),
        *(
            e["item"]["content"] and e["item"]["content"][0]["text"]
            for e in events
            if e.get("item", {}).get("type") == "reasoning"
        ),
    ]
    assert [one for one in told if one is not None and one != []] == [""]


async def test_thoughts_of_other_models_histories_are_taken_where_ours_may_think(
    make_client, scripted, tokenizer
):
    """Text, a call, its output, a thought, text: as models write that think between their calls."""
    link = scripted([[tokenizer.end_think_id, 9, tokenizer.end_id]])
    client = make_client(link)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "1"}'}}
    asked = Chat()
    asked.history += [
        {"role": "assistant", "content": "ab", "reasoning_content": "is", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "assistant", "content": "34", "reasoning_content": "5+6"},
        {"role": "user", "content": "say 5"},
    ]
    assert (await client.post(asked.path, json=asked.body())).status_code == 200
    without = [{k: v for k, v in m.items() if v != "5+6"} for m in asked.history]
    await client.post(asked.path, json=asked.body() | {"messages": without})
    first, second = (request.prompt_ids for request in link.requests)
    assert first == second
    assert b"is" in b"".join(map(tokenizer.token_bytes, first))
