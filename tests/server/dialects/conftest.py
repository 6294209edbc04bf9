"""One small checkpoint folder for each family: marks as published, templates and tokenizers of our own."""

import functools
import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from nalar.model.folder import ModelFolder
from nalar.server.dialects.dialect import Dialect

THOUGHT = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
CHATML = """\
{% if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ m.role }}
THOUGHT{{ m.content }}
{%- for call in m.tool_calls or [] %}

CALL
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}
{%- endif %}"""
HERMES = """\
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>"""
XML = """\
<tool_call>
<function={{ call.function.name }}>
{% for key, value in call.function.arguments | items %}<parameter={{ key }}>
{{ value if value is string else value | tojson }}
</parameter>
{% endfor %}</function>
</tool_call>"""
GRANITE = """\
{% if tools %}<|start_of_role|>tools<|end_of_role|>{{ tools | tojson(indent=4) }}<|end_of_text|>
{% endif %}
{%- for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{% if m.reasoning_content %}OPEN
{{ m.reasoning_content }}
CLOSE
{% endif %}{{ m.content }}
{%- if m.tool_calls %}

CALLS{% endif %}<|end_of_text|>
{% endfor %}
{%- if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% if thinking %}{% endif %}{% endif %}"""
GRANITE_LIST = (
    "<|tool_call|>[{% for call in m.tool_calls %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "{{ ', ' if not loop.last }}{% endfor %}]"
)
DEEPSEEK = """\
{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}TOOLS
{%- for m in messages %}
{%- if m.role == 'user' %}<｜User｜>{{ m.content }}
{%- elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>
{%- elif m.role == 'assistant' %}<｜Assistant｜>THOUGHT{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}{% if loop.first %}<｜tool▁calls▁begin｜>{% endif %}<｜tool▁call▁begin｜>CALL\
<｜tool▁call▁end｜>{% endfor %}
{%- if m.tool_calls %}<｜tool▁calls▁end｜>{% endif %}<｜end▁of▁sentence｜>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<｜Assistant｜>OPEN{% endif %}"""
KIMI = """\
{% if tools %}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>{% endif %}
{%- for m in messages %}
{%- if m.role in ('user', 'assistant') %}<|im_{{ m.role }}|>{% else %}<|im_system|>{% endif -%}
{{ m.get('name') or m.role }}<|im_middle|>
{%- if m.role == 'assistant' %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}
{%- if m.role == 'tool' %}## Return of {{ m.tool_call_id }}
{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{% if loop.first %}<|tool_calls_section_begin|>{% endif %}<|tool_call_begin|>\
{{ call.id }}<|tool_call_argument_begin|>{{ call.function.arguments if call.function.arguments is string \
else call.function.arguments | tojson }}<|tool_call_end|>{% endfor %}
{%- if m.tool_calls %}<|tool_calls_section_end|>{% endif %}<|im_end|>
{%- endfor %}
{%- if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"""


def _granite(think, end_think, calls):
    return GRANITE.replace("OPEN", think).replace("CLOSE", end_think).replace("CALLS", calls)


def _deepseek(thought, call, opening, tools="{{ tools | tojson if tools }}"):
    written = {"THOUGHT": thought, "CALL": call, "OPEN": opening, "TOOLS": tools}
    return functools.reduce(lambda text, part: text.replace(*part), written.items(), DEEPSEEK)


R1_CALL = (
    "function<｜tool▁sep｜>{{ call.function.name }}\n```json\n{{ call.function.arguments }}\n```"
)
V31_CALL = "{{ call.function.name }}<｜tool▁sep｜>{{ call.function.arguments }}"
R1 = _deepseek(THOUGHT, R1_CALL, "<think>\n")
# As R1's own: not a word of tools, and behind their outputs the assistant goes on in the same turn.
R1_BARE = _deepseek("", R1_CALL, "<think>\n", tools="").replace(
    "{%- if add_generation_prompt %}<｜Assistant｜>",
    "{%- if add_generation_prompt and messages[-1].role != 'tool' %}<｜Assistant｜>",
)
TEMPLATES = {
    "qwen3": CHATML.replace("THOUGHT", THOUGHT).replace("CALL", HERMES),
    "qwen3-coder": CHATML.replace("THOUGHT", THOUGHT).replace("CALL", XML),
    "granite-3.2": _granite("Here is my thought process:", "Here is my response:", GRANITE_LIST),
    "granite-3.3": _granite("<think>", "</think>\n<response>", GRANITE_LIST),
    "granite-4": _granite(
        "<think>", "</think>", "{% for call in m.tool_calls %}" + HERMES + "{% endfor %}"
    ),
    "deepseek-r1": R1,
    "deepseek-v3.1": _deepseek(
        "{{ '<think>' + m.reasoning_content if m.reasoning_content }}</think>",
        V31_CALL,
        "{{ '<think>' if thinking else '</think>' }}",
    ),
    "kimi-k2": KIMI,
}
_DEEPSEEK_MARKS = (
    "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> "
    "<｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁sep｜> "
    "<｜tool▁output▁begin｜> <｜tool▁output▁end｜>"
)
_KIMI_MARKS = (
    "[EOS] <|im_end|> <|im_user|> <|im_assistant|> <|im_system|> <|im_middle|> <|tool_calls_section_begin|> "
    "<|tool_calls_section_end|> <|tool_call_begin|> <|tool_call_end|> <|tool_call_argument_begin|>"
)
_THINK = " <think> </think>"
_GRANITE_MARKS = "<|end_of_text|> <|start_of_role|> <|end_of_role|>"
_CHATML_MARKS = "<|im_end|> <|im_start|> <tool_call> </tool_call> <tool_response> </tool_response>"
ADDED = {
    "qwen3": _CHATML_MARKS + _THINK,
    "qwen3-coder": _CHATML_MARKS,
    "granite-3.2": _GRANITE_MARKS + " <|tool_call|>",
    "granite-3.3": _GRANITE_MARKS + " <|tool_call|>",
    "granite-4": _GRANITE_MARKS + " <tool_call> </tool_call>" + _THINK,
    "deepseek-r1": _DEEPSEEK_MARKS + _THINK,
    "deepseek-v3.1": _DEEPSEEK_MARKS + _THINK,
    "kimi-k2": _KIMI_MARKS + _THINK,
    # Of a distilled checkpoint: calls are text over several tokens.
    "deepseek-r1-text": "<｜end▁of▁sentence｜> <｜begin▁of▁sentence｜> <｜User｜> <｜Assistant｜>"
    + _THINK,
    "qwen3-text": "<|im_end|> <|im_start|>",
}
TEMPLATES["deepseek-r1-text"] = R1
TEMPLATES["deepseek-r1-bare"] = R1_BARE
ADDED["deepseek-r1-bare"] = ADDED["deepseek-r1"]
TEMPLATES["qwen3-text"] = TEMPLATES["qwen3"]
END = {
    "qwen3": "<|im_end|>",
    "granite": "<|end_of_text|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "kimi": "<|im_end|>",
}


def write_folder(folder, added, template, end, bos=None):
    """A checkpoint's folder, but for weights."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(['{"city": "Oslo"} weather thinking tool_call'] * 9, trainer)
    # As in published ones, some control tokens are not called special.
    backend.add_tokens(
        [AddedToken(text, special=text.startswith("<|"), normalized=False) for text in added]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    ids = {"eos_token_id": backend.token_to_id(end)}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    if bos:
        config["bos_token"] = bos
    (folder / "config.json").write_text(json.dumps({"model_type": "other", **ids}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def write_family(folder, name):
    added = ADDED[name].split()
    end = next(text for key, text in END.items() if name.startswith(key))
    bos = "<｜begin▁of▁sentence｜>" if name.startswith("deepseek") else None
    return write_folder(folder, added, TEMPLATES[name], end, bos)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The folder of a family, by name; of what write_folder is given, where there is more."""

    @functools.cache
    def make(name, *args):
        folder = tmp_path_factory.mktemp(name)
        return write_folder(folder, *args) if args else write_family(folder, name)

    return make


@pytest.fixture(scope="session")
def dialect_of(folder_of):
    return functools.cache(lambda *args: Dialect.of(ModelFolder.read(folder_of(*args))))


def folded(pieces):
    """Thought, answer, and of each call: name, arguments, whether it ended; and the ids of calls."""
    texts, calls, ids = {"thought": "", "answer": ""}, [], []
    for piece in pieces:
        if piece.kind == "call":
            calls.append([piece.name, "", False])
            ids.append(piece.call_id)
            assert piece.call == len(calls) - 1
        elif piece.kind == "arguments":
            calls[piece.call][1] += piece.text
        elif piece.kind == "call_end":
            calls[piece.call][2] = True
        else:
            texts[piece.kind] += piece.text
    return texts["thought"], texts["answer"], [tuple(call) for call in calls], ids


@pytest.fixture(scope="session")
def fold():
    return folded
