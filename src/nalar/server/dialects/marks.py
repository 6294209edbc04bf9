"""How families write thoughts and calls: facts of their published templates, one table. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from nalar.data import template

Form = Literal["bare", "name", "object", "list", "xml"]
"""What stands between a call's marks.

bare: name, separator, arguments as JSON or as the one argument's text.
name: a header, a separator, the arguments. object: one JSON object of name and arguments. list: a JSON list of such
objects. xml: `<function=name>` with a `<parameter=key>` for each argument."""


@dataclass(frozen=True)
class CallMarks:
    form: Form
    begin: str
    end: str = ""
    """Empty: a list ends where JSON says so."""
    section: tuple[str, str] | None = None
    """Around all calls of one go."""
    prefix: str = ""
    """Of the header, before the name."""
    separator: str = ""
    """Between header and arguments."""
    trailer: str = ""
    """Behind the arguments."""
    inner: tuple[str, ...] = ()
    """Marks within prefix and separator."""


@dataclass(frozen=True)
class Family:
    """One way of writing an assistant's turn."""

    name: str
    think: tuple[str, ...] = ("<think>",)
    end_think: tuple[str, ...] = ("</think>",)
    """The first of each is what we write; the others are read too."""
    calls: CallMarks | None = None
    rethinks: bool = True
    """A thought may begin behind an answer too. Where marks are text it never does."""
    output: tuple[str, str] | None = None
    """Around a tool's output, where that stands in the assistant's turn."""
    dropped: tuple[str, ...] = ()
    """Marks that say nothing to a reader."""
    padding: str = ""
    """What templates put around thoughts and before calls, as often as they like, and what is no part of either."""
    call_id: Literal["random", "kimi"] = "random"
    """kimi: `functions.name:n`, n counting the calls of a conversation, as the model itself writes it."""
    empty_is_none: bool = False
    """Templates want null for the content of a message that only calls."""
    closes_unopened: bool = False
    """A thought that the prompt does not open is switched off by an empty one, where the template has no switch."""
    signs: tuple[str, ...] = ()
    """What a chat template holds that is of this family: all of these."""


_HERMES = CallMarks("object", "<tool_call>", "</tool_call>")
_DEEPSEEK = {
    "begin": "<｜tool▁call▁begin｜>",
    "end": "<｜tool▁call▁end｜>",
    "section": ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    "inner": ("<｜tool▁sep｜>",),
}

NALAR = Family(
    "nalar",
    calls=CallMarks("bare", template.TOOL_CALL, template.END_TOOL_CALL, separator=" "),
    rethinks=False,
    output=(template.TOOL_OUTPUT, template.END_TOOL_OUTPUT),
)
PLAIN = Family("plain")
FAMILIES = (
    Family(
        "deepseek-r1",  # V3 has the same calls and no thought
        calls=CallMarks(
            "name",
            prefix="function<｜tool▁sep｜>",
            separator="\n```json\n",
            trailer="\n```",
            **_DEEPSEEK,  # type: ignore[arg-type]
        ),
        padding="\n",
        empty_is_none=True,
        closes_unopened=True,
        signs=("<｜Assistant｜>", "```json"),
    ),
    Family(
        "deepseek-v3.1",
        calls=CallMarks("name", separator="<｜tool▁sep｜>", **_DEEPSEEK),  # type: ignore[arg-type]
        empty_is_none=True,
        signs=("<｜Assistant｜>", "<｜tool▁sep｜>"),
    ),
    Family(
        "kimi-k2",
        calls=CallMarks(
            "name",
            "<|tool_call_begin|>",
            "<|tool_call_end|>",
            section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
            separator="<|tool_call_argument_begin|>",
            inner=("<|tool_call_argument_begin|>",),
        ),
        call_id="kimi",
        closes_unopened=True,
        signs=("<|im_middle|>",),
    ),
    Family(
        "granite-3.2",
        think=("Here is my thought process:", "Here's my thought process:"),
        end_think=("Here is my response:", "Here's my response:"),
        calls=CallMarks("list", "<|tool_call|>"),
        padding="\n",
        signs=("<|start_of_role|>", "<|tool_call|>", "Here is my thought process:"),
    ),
    Family(
        "granite-3.3",
        calls=CallMarks("list", "<|tool_call|>"),
        dropped=("<response>", "</response>"),
        padding="\n",
        signs=("<|start_of_role|>", "<|tool_call|>"),
    ),
    Family("granite-4", calls=_HERMES, padding="\n", signs=("<|start_of_role|>",)),
    Family(
        "qwen3-coder",
        calls=CallMarks("xml", "<tool_call>", "</tool_call>"),
        padding="\n",
        signs=("<|im_start|>", "<function="),
    ),
    Family("qwen3", calls=_HERMES, padding="\n", signs=("<|im_start|>", "<tool_call>")),
)
"""In the order in which they are looked for."""


def family_of(chat_template: str) -> Family:
    """Whose marks a chat template holds; plain where it is nobody's."""
    return next((f for f in FAMILIES if all(sign in chat_template for sign in f.signs)), PLAIN)
