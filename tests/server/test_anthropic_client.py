"""`/v1/messages` with the official `anthropic` client, against a server on a socket and a model that has learned
nothing."""

import json

import anthropic
import httpx
import pytest

USER = {"role": "user", "content": "say 12"}
ASK = {"model": "tiny", "max_tokens": 60, "messages": [USER], "extra_body": {"seed": 3}}
ADD = {
    "name": "add",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
OFF = {"thinking": {"type": "disabled"}}


@pytest.fixture(scope="module")
def client(server):
    return anthropic.Anthropic(base_url=server, api_key="none", max_retries=0, timeout=60)


def test_a_stream_says_what_the_whole_reply_says(client):
    ask = ASK | {"thinking": {"type": "enabled", "budget_tokens": 6}}
    whole = client.messages.create(**ask)
    with client.messages.stream(**ask) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    thought, answer = whole.content
    assert (thought.type, answer.type) == ("thinking", "text") and thought.thinking and answer.text
    assert streamed.content[0].thinking == thought.thinking
    assert streamed.content[0].signature == thought.signature
    assert streamed.content[1].text == answer.text
    assert streamed.stop_reason == whole.stop_reason in ("end_turn", "max_tokens")
    usage = whole.usage
    assert usage.output_tokens == streamed.usage.output_tokens > 0
    assert usage.output_tokens_details.thinking_tokens == 6
    for one in (usage, streamed.usage):
        assert one.input_tokens + one.cache_read_input_tokens == counted(client, ask)


def counted(client, ask):
    names = ("model", "messages", "thinking", "system", "tools")
    asked = {name: ask[name] for name in names if name in ask}
    return client.messages.count_tokens(**asked).input_tokens


def test_a_tool_is_called_and_its_result_goes_back(client):
    ask = ASK | OFF | {"tools": [ADD], "max_tokens": 150, "tool_choice": {"type": "any"}}
    ask |= {"extra_body": {"seed": 1, "temperature": 0.5}}
    whole = client.messages.create(**ask)
    (call,) = whole.content
    assert whole.stop_reason == "tool_use" and call.type == "tool_use"
    assert call.name == "add" and 0 <= call.input["a"] <= 9
    with client.messages.stream(**ask) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "7"}
    again = [USER, {"role": "assistant", "content": whole.content}]
    again += [{"role": "user", "content": [result, {"type": "text", "text": "ab"}]}]
    ask |= {"messages": again, "tool_choice": {"type": "none"}, "max_tokens": 4}
    assert client.messages.create(**ask).stop_reason in ("max_tokens", "end_turn")
    assert counted(client, ask) > counted(client, ASK)


def test_ends_by_a_stop_sequence_and_by_the_limit(client):
    text = client.messages.create(**ASK | OFF).content[0].text
    stop = text[5:7]
    reply = client.messages.create(**ASK | OFF, stop_sequences=[stop])
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", stop)
    assert reply.content[0].text == text[: text.index(stop)]
    cut = client.messages.create(**ASK | {"max_tokens": 3, "extra_body": {"min_tokens": 3}})
    assert cut.stop_reason == "max_tokens" and [b.type for b in cut.content] == ["thinking"]


def test_a_last_message_of_the_assistant_goes_on(client):
    ask = ASK | OFF | {"messages": [USER, {"role": "assistant", "content": "34 ab"}]}
    whole = [USER, {"role": "assistant", "content": "34 ab"}, USER]
    assert counted(client, ask) < counted(client, ask | {"messages": whole}) - 5
    assert client.messages.create(**ask | {"max_tokens": 2}).usage.output_tokens == 2


def test_an_answer_follows_its_schema(client):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    reply = client.messages.create(
        **ASK | OFF | {"max_tokens": 200, "extra_body": {"seed": 3, "temperature": 0.5}},
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert json.loads(reply.content[0].text)["a"] in (True, False)


@pytest.mark.parametrize(
    "bad",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"max_tokens": 0},
        {"thinking": {"type": "enabled", "budget_tokens": -1}},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tool_choice": {"type": "tool", "name": "nobody"}},
    ],
)
def test_errors_have_anthropics_form(client, server, bad):
    with pytest.raises(anthropic.BadRequestError) as error:
        client.messages.create(**ASK | bad)
    assert error.value.body["error"]["type"] == "invalid_request_error"
    assert error.value.body["type"] == "error"


def test_unknown_models_and_methods_too(client, server):
    with pytest.raises(anthropic.NotFoundError) as error:
        client.messages.create(**ASK | {"model": "nobody"})
    assert error.value.body["error"]["type"] == "not_found_error"
    assert httpx.get(f"{server}/v1/messages").json()["type"] == "error"
