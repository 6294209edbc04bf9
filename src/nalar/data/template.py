"""The special tokens and the chat templates: one for every tokenizer of ours, one for those that know tools."""

END = "<|end|>"
"""Closes a turn and a document; also the padding."""
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
THINK = "<think>"
END_THINK = "</think>"
SPECIAL_TOKENS = (END, USER, ASSISTANT, THINK, END_THINK)
"""In the order of their ids, from 0."""
TOOL_CALL = "<tool_call>"
END_TOOL_CALL = "</tool_call>"
TOOL_OUTPUT = "<tool_output>"
END_TOOL_OUTPUT = "</tool_output>"
TOOL_TOKENS = (TOOL_CALL, END_TOOL_CALL, TOOL_OUTPUT, END_TOOL_OUTPUT)
"""Behind the others, in a tokenizer that knows tools."""

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

TOOL_TEMPLATE = """\
{%- set turn = namespace(open=false, thinks=false) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- if turn.open -%}{%- if turn.thinks -%}</think>{%- endif -%}<|end|>{%- set turn.open = false -%}{%- endif -%}
<|user|>{{ message.content }}
{%- elif message.role == 'tool' -%}
{%- if not turn.open -%}{{ raise_exception('an output of a tool without a call') }}{%- endif -%}
<tool_output>{{ message.content }}</tool_output>
{%- elif message.role == 'assistant' -%}
{%- set thought = message.reasoning_content or '' -%}
{%- set said = message.content or '' -%}
{%- set calls = message.tool_calls or [] -%}
{%- if not turn.open -%}<|assistant|><think>{%- set turn.thinks = true -%}{%- endif -%}
{%- if thought and not turn.thinks -%}{{ raise_exception('a thought behind an answer') }}{%- endif -%}
{{ thought }}
{%- if turn.thinks and (said or not calls or message.reasoning_content is not string) -%}
</think>{%- set turn.thinks = false -%}
{%- endif -%}
{{ said }}
{%- for call in calls -%}
<tool_call>{{ call.function.name }} {{ call.function.arguments if call.function.arguments is string \
else call.function.arguments | tojson }}</tool_call>
{%- endfor -%}
{%- set turn.open = calls | length > 0 -%}
{%- if not turn.open -%}<|end|>{%- endif -%}
{%- else -%}
{{ raise_exception('unknown role: ' ~ message.role) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if not turn.open -%}<|assistant|><think>{%- set turn.thinks = true -%}{%- endif -%}
{%- if turn.thinks and enable_thinking is defined and not enable_thinking -%}</think>{%- endif -%}
{%- endif -%}"""
"""The same with calls and outputs. A call stands in the thought where its message has a thought, if an empty one, and
no content; the turn goes on behind the output."""


def turn(prompt: str, thought: str, answer: str) -> str:
    """A dialogue of one turn as training text."""
    return f"{USER}{prompt}{ASSISTANT}{THINK}{thought}{END_THINK}{answer}{END}"


def answered_call(name: str, arguments: str, output: str) -> str:
    """A call and what came of it, as training text."""
    return f"{TOOL_CALL}{name} {arguments}{END_TOOL_CALL}{TOOL_OUTPUT}{output}{END_TOOL_OUTPUT}"
