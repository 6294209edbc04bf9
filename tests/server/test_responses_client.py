"""`/v1/responses` with the official `openai` client, against a server on a socket and a model that has learned
nothing."""

import json

import openai
import pytest
from pydantic import BaseModel

ASK = {"model": "tiny", "input": "say 12", "max_output_tokens": 60, "extra_body": {"seed": 3}}
ADD = {
    "type": "function",
    "name": "add",
    "description": "",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Digit(BaseModel, extra="forbid"):
    a: bool


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=60)


def thinking(budget):
    return {"extra_body": {"seed": 3, "thinking_token_budget": budget}}


def text_of(item, place):
    return "".join(part.text for part in getattr(item, place))


@pytest.mark.parametrize("summary", [None, "auto"])
def test_a_stream_says_what_the_whole_reply_says(client, summary):
    ask = ASK | thinking(6) | {"reasoning": {"effort": "high", "summary": summary}}
    whole = client.responses.create(**ask)
    events = list(client.responses.create(**ask, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1].response
    place, kind = (
        ("summary", "reasoning_summary_text") if summary else ("content", "reasoning_text")
    )
    thought, message = whole.output
    assert [item.type for item in last.output] == ["reasoning", "message"]
    assert text_of(thought, place) == text_of(last.output[0], place) != ""
    assert whole.output_text == last.output_text
    for name, text in ((kind, text_of(thought, place)), ("output_text", whole.output_text)):
        deltas = [e.delta for e in events if e.type == f"response.{name}.delta"]
        (done,) = [e for e in events if e.type == f"response.{name}.done"]
        assert "".join(deltas) == done.text == text
    assert whole.usage.output_tokens_details.reasoning_tokens == 6
    assert whole.usage.input_tokens == last.usage.input_tokens > 0
    assert last.usage.input_tokens_details.cached_tokens >= 0
    assert whole.status == ("completed" if message.status == "completed" else "incomplete")
    assert whole.store is False and whole.id.startswith("resp_")


def test_a_tool_is_called_and_its_output_goes_back(client):
    ask = {"model": "tiny", "tools": [ADD], "temperature": 0.5, "reasoning": {"effort": "none"}}
    ask |= {"max_output_tokens": 150, "extra_body": {"seed": 1}}
    first = client.responses.create(**ask, input="say 12", tool_choice="required")
    (call,) = first.output
    assert call.type == "function_call" and call.name == "add" and first.status == "completed"
    assert 0 <= json.loads(call.arguments)["a"] <= 9
    with client.responses.stream(**ask, input="say 12", tool_choice="required") as stream:
        kinds = [event.type for event in stream]
        (streamed,) = stream.get_final_response().output
    assert streamed.arguments == call.arguments
    assert "response.function_call_arguments.delta" in kinds
    history = [{"role": "user", "content": "say 12"}, *first.output]
    history += [{"type": "function_call_output", "call_id": call.call_id, "output": "7"}]
    again = client.responses.create(**ask, input=history, tool_choice="none")
    assert again.usage.input_tokens > first.usage.input_tokens
    assert all(item.type != "function_call" for item in again.output)


def test_an_answer_follows_its_schema(client):
    reply = client.responses.parse(
        **ASK | thinking(5) | {"max_output_tokens": 200}, text_format=Digit, temperature=0.5
    )
    assert isinstance(reply.output_parsed, Digit)
    assert reply.usage.output_tokens_details.reasoning_tokens == 5


def test_a_thought_that_is_cut_is_no_answer(client):
    ask = ASK | {"max_output_tokens": 3, "extra_body": {"min_tokens": 3}}
    reply = client.responses.create(**ask)
    assert reply.status == "incomplete" and reply.output_text == ""
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert [item.type for item in reply.output] == ["reasoning"]
    *_, last = client.responses.create(**ask, stream=True)
    assert last.type == "response.incomplete"


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, None),
        ({"input": [{"role": "wizard", "content": "x"}]}, None),
        ({"tools": [{"type": "web_search"}]}, None),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, None),
    ],
)
def test_what_would_need_more_than_a_model_is_refused(client, bad, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**ASK | bad)
    assert param is None or error.value.param == param


def test_the_model_sees_what_a_chat_would_show_it(client):
    """History by items is the history by messages: the same prompt to the token."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    chat = client.chat.completions.create(
        model="tiny",
        max_tokens=1,
        messages=[
            {"role": "system", "content": "ab"},
            {"role": "user", "content": "say 12"},
            {"role": "assistant", "content": "34", "reasoning_content": "is", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "7"},
        ],
        tools=[{"type": "function", "function": {k: ADD[k] for k in ("name", "parameters")}}],
    )
    items = client.responses.create(
        model="tiny",
        max_output_tokens=1,
        instructions="ab",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "say 12"}]},
            {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "is"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "34"}]},
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
            {"type": "function_call_output", "call_id": "c1", "output": "7"},
        ],
        tools=[ADD | {"strict": False}],
    )
    assert items.usage.input_tokens == chat.usage.prompt_tokens
