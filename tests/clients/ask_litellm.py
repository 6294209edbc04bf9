"""LiteLLM: chats, streams, tools, and the APIs of responses and messages.

Run inside .venv-clients: URL. Prints one JSON line with what each gave.
"""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks for prices over the network

import litellm

MESSAGES = [{"role": "user", "content": "say 12"}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


def main(url: str) -> None:
    to = {"api_base": f"{url}/v1", "api_key": "none", "messages": MESSAGES, "seed": 3}
    to |= {"model": "openai/tiny", "max_tokens": 60}
    body = {"extra_body": {"thinking_token_budget": 6}}
    whole = litellm.completion(**to, **body)
    chunks = list(
        litellm.completion(**to, **body, stream=True, stream_options={"include_usage": True})
    )
    streamed = litellm.stream_chunk_builder(chunks)
    off = {"extra_body": {"reasoning_effort": "none"}}
    called = litellm.completion(
        **to | {"max_tokens": 150}, **off, tools=[ADD], tool_choice="required"
    )
    (call,) = called.choices[0].message.tool_calls
    response = litellm.responses(
        model="openai/tiny",
        input="say 12",
        api_base=f"{url}/v1",
        api_key="none",
        max_output_tokens=20,
    )
    message = litellm.completion(
        model="anthropic/tiny",
        messages=MESSAGES,
        api_base=url,
        api_key="none",
        max_tokens=20,
    )
    try:
        litellm.completion(**to | {"model": "openai/nobody"})
        error = None
    except litellm.NotFoundError as caught:
        error = type(caught).__name__

    def said(reply):
        first = reply.choices[0].message
        return [first.reasoning_content, first.content]

    print(
        json.dumps(
            {
                "whole": said(whole),
                "streamed": said(streamed),
                "tokens": [whole.usage.completion_tokens, streamed.usage.completion_tokens],
                "reasoning": whole.usage.completion_tokens_details.reasoning_tokens,
                "call": [call.function.name, call.function.arguments],
                "finish": called.choices[0].finish_reason,
                "response": [item.type for item in response.output],
                "message": message.usage.completion_tokens,
                "error": error,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
