"""The special tokens and the chat template, which every tokenizer of ours shares."""

END = "<|end|>"
"""Closes a turn and a document; also the padding."""
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
THINK = "<think>"
END_THINK = "</think>"
SPECIAL_TOKENS = (END, USER, ASSISTANT, THINK, END_THINK)
"""In the order of their ids, from 0."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}
<|user|>{{ message.content }}
{%- elif message.role == 'assistant' -%}
<|assistant|><think>{{ message.reasoning_content or '' }}</think>{{ message.content }}<|end|>
{%- else -%}
{{ raise_exception('unknown role: ' ~ message.role) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|><think>{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}
{%- endif -%}"""
"""Jinja. `reasoning_content` is the thought of an assistant's turn; `enable_thinking=False` closes it unopened."""


def turn(prompt: str, thought: str, answer: str) -> str:
    """A dialogue of one turn as training text."""
    return f"{USER}{prompt}{ASSISTANT}{THINK}{thought}{END_THINK}{answer}{END}"
