"""The official `openai` client against a server on a socket, with a model that has learned nothing."""

import json
import time

import httpx
import openai
import pytest

MESSAGES = [{"role": "user", "content": "say 12"}]
ADD = {
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=60)


def test_models_are_listed_and_known_by_each_name(client):
    assert [model.id for model in client.models.list()] == ["tiny", "alias"]
    assert client.models.retrieve("alias").max_model_len == 512
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt", messages=MESSAGES)
    assert error.value.code == "model_not_found"


def test_a_stream_says_what_the_whole_reply_says(client):
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40, "seed": 3, "n": 2}
    ask["extra_body"] = {"thinking_token_budget": 6}
    whole = client.chat.completions.create(**ask)
    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    for choice in whole.choices:
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert own[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        thought = "".join(getattr(c.delta, "reasoning_content", "") for c in own)
        assert thought == choice.message.reasoning_content != ""
        assert [c.finish_reason for c in own if c.finish_reason] == [choice.finish_reason]
    assert chunks[-1].choices == [] and len({chunk.id for chunk in chunks}) == 1
    usage = chunks[-1].usage
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens <= 12
    assert whole.usage.prompt_tokens == usage.prompt_tokens


def test_a_required_tool_is_called_with_arguments_that_fit(client):
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 150, "seed": 1, "temperature": 0.5}
    ask |= {"tools": [{"type": "function", "function": ADD}], "tool_choice": "required"}
    whole = client.chat.completions.create(**ask, reasoning_effort="none")
    (choice,) = whole.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.function.name == "add" and 0 <= json.loads(call.function.arguments)["a"] <= 9
    with client.chat.completions.stream(**ask, reasoning_effort="none") as stream:
        for _ in stream:
            pass
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments
    again = [
        *MESSAGES,
        choice.message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "7"},
    ]
    reply = client.chat.completions.create(model="tiny", messages=again, max_tokens=4)
    assert reply.usage.prompt_tokens > whole.usage.prompt_tokens


def test_an_answer_follows_its_schema_behind_a_free_thought(client):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    reply = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=200,
        seed=1,
        temperature=0.5,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        extra_body={"thinking": {"type": "enabled", "budget_tokens": 5}},
    )
    assert json.loads(reply.choices[0].message.content)["a"] in (1, 2)
    assert reply.usage.completion_tokens_details.reasoning_tokens == 5
    for bad, message in (
        ({"type": "nothing"}, "response_format: got Invalid type"),
        ({"type": "integer", "multipleOf": 999_983}, "response_format: .* longer than 0.5 s"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(
                model="tiny",
                messages=MESSAGES,
                response_format={"type": "json_schema", "json_schema": {"schema": bad}},
            )


def test_a_thought_that_is_cut_is_no_answer(client):
    reply = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=3, seed=0, extra_body={"min_tokens": 3}
    )
    assert reply.choices[0].finish_reason == "length" and reply.choices[0].message.content == ""


def test_prompts_of_ids_are_scored_as_lm_eval_reads_them(client):
    prompts = [[20, 21, 22, 23], [30, 31]]
    reply = client.completions.create(
        model="tiny",
        prompt=prompts,
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    for i, (ids, choice) in enumerate(zip(prompts, reply.choices, strict=True)):
        scores = choice.logprobs
        assert choice.index == i and len(scores.tokens) == len(scores.text_offset) == len(ids) + 1
        assert scores.token_logprobs[0] is None and scores.top_logprobs[0] is None
        for token, value, top in zip(
            scores.tokens[1:], scores.token_logprobs[1:], scores.top_logprobs[1:], strict=True
        ):
            assert top[token] == value <= max(top.values())
        assert scores.token_logprobs[-1] == max(scores.top_logprobs[-1].values())  # greedy
    alone = client.completions.create(
        model="tiny", prompt=prompts[1], temperature=0, max_tokens=1, logprobs=1, echo=True
    )
    again = alone.choices[0].logprobs.token_logprobs[1:]
    assert again == pytest.approx(reply.choices[1].logprobs.token_logprobs[1:], abs=1e-4)


def test_a_stream_of_a_completion_is_the_completion(client):
    ask = {"model": "tiny", "prompt": "say 12", "max_tokens": 12, "seed": 2, "echo": True}
    whole = client.completions.create(**ask, logprobs=2)
    chunks = list(client.completions.create(**ask, logprobs=2, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    tokens = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.tokens]
    assert tokens == whole.choices[0].logprobs.tokens
    assert whole.choices[0].text.startswith("say 12")


def test_who_leaves_leaves_no_work_behind(server):
    body = {"messages": MESSAGES, "max_tokens": 400, "min_tokens": 400, "n": 4}
    for stream in (True, False):
        with httpx.Client(base_url=server, timeout=30) as client:
            if stream:
                with client.stream(
                    "POST", "/v1/chat/completions", json=body | {"stream": True}
                ) as r:
                    next(r.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=body, timeout=0.3)
        deadline = time.monotonic() + 20
        while 'num_requests_running{model_name="tiny"} 0.0' not in (
            figures := httpx.get(f"{server}/metrics").text
        ):
            assert time.monotonic() < deadline, figures
            time.sleep(0.05)
    assert 'nalar:request_failure_total{model_name="tiny",status="499"} 2.0' in figures
