"""A model's text as HTML that is safe to show: Markdown, tables, formulas as MathML.

The text is nobody's to trust: HTML in it is shown as text, and what the renderer made is cleaned by a list of tags and
attributes all the same. Nothing in it makes a browser load anything: pictures become links.
"""

import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from html import escape
from typing import Any

import nh3
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from mdit_py_plugins.dollarmath import dollarmath_plugin

MAX_CHARS = 50_000
"""What is longer is shown as plain text."""
MAX_NESTING = 20
"""Of quotes, lists and emphasis; deeper marks are shown as they stand."""
MAX_FORMULA_CHARS = 2_000
MAX_FORMULA_NESTING = 30
MAX_FORMULAS = 500
"""Of one text; those behind are shown as they were written."""
MAX_BRACKETS = 3_000
"""Openings of links in one text. Looking for their ends takes time with their number's square."""

_MATHML = {
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "ms"),
    *("mfrac", "msqrt", "mroot", "mstyle", "mpadded", "mphantom", "menclose"),
    *("msub", "msup", "msubsup", "munder", "mover", "munderover", "mmultiscripts", "mprescripts"),
    *("mtable", "mtr", "mtd"),
}
_HTML = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li"),
    *("strong", "em", "s", "code", "pre", "a", "span", "div"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
_MATHML_ATTRIBUTES = {
    *("display", "xmlns", "mathvariant", "stretchy", "fence", "separator", "form", "largeop"),
    *("movablelimits", "symmetric", "accent", "accentunder", "lspace", "rspace", "minsize"),
    *("maxsize", "linethickness", "columnalign", "rowspacing", "columnspacing", "notation"),
    *("width", "height", "depth", "displaystyle", "scriptlevel"),
}
_ATTRIBUTES: Mapping[str, set[str]] = {
    "a": {"href", "title"},
    "ol": {"start"},
    "th": {"align"},
    "td": {"align"},
    **dict.fromkeys(_MATHML, _MATHML_ATTRIBUTES),
}
_CLASSES = {"pre": {"formula"}, "code": {"formula"}, "div": {"display"}}
_LANGUAGE = re.compile(r"[A-Za-z0-9+#._-]{1,30}")
_FORMULAS = {"math_inline": False, "math_inline_double": True, "math_block": True}
"""Kinds of tokens that hold a formula, and whether it stands on lines of its own."""
_ENVIRONMENTS = {
    "aligned": "split",
    "alignedat": "split",
    "gathered": "array",
    "gather": "array",
    "gather*": "array",
    "equation": "split",
    "equation*": "split",
}
_ENVIRONMENT = re.compile(
    r"(\\(?:begin|end)\{)(" + "|".join(map(re.escape, _ENVIRONMENTS)) + r")\}"
)
_TEXT_COMMAND = re.compile(r"(\\(?:text\w*|mbox|hbox)\s*\{)([^{}]*)(\})")


def to_html(text: str) -> str:
    """HTML that holds no script, no style, no handler, no address but http, https and mailto, and loads nothing."""
    if len(text) > MAX_CHARS or text.count("[") > MAX_BRACKETS:
        return f"<pre>{nh3.clean_text(text)}</pre>"
    return _clean(_markdown().render(text))


def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags=_HTML | _MATHML,
        clean_content_tags={"script", "style"},
        attributes={**_ATTRIBUTES, "pre": {"data-language"}},
        allowed_classes=_CLASSES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def _markdown() -> MarkdownIt:
    """One for each text: it counts the text's formulas."""
    markdown = MarkdownIt(
        "commonmark", {"html": False, "linkify": False, "maxNesting": MAX_NESTING}
    )
    markdown.enable(["table", "strikethrough"])
    formulas = _Formulas()
    # A price is no formula: "$5 or $6" has a space or a digit where a formula has none.
    dollarmath_plugin(
        markdown,
        allow_labels=False,
        allow_space=False,
        allow_digits=False,
        double_inline=True,
    )
    markdown.inline.ruler.before("escape", "bracket_formula", _inline_formula)
    markdown.block.ruler.before(
        "fence",
        "bracket_formula_block",
        _block_formula,
        {"alt": ["paragraph", "reference", "blockquote", "list"]},
    )
    for name, is_block in _FORMULAS.items():
        markdown.add_render_rule(name, formulas.rule(is_block=is_block))
    rules: dict[str, Callable[..., str]] = {
        "image": _image,
        "fence": _fence,
        "code_block": _fence,
        "th_open": _cell,
        "td_open": _cell,
    }
    for name, rule in rules.items():
        markdown.add_render_rule(name, rule)
    return markdown


class _Formulas:
    """Draws formulas, so many of them."""

    def __init__(self) -> None:
        self.left = MAX_FORMULAS

    def rule(self, *, is_block: bool) -> Callable[..., str]:
        """How the renderer writes a token that holds a formula."""

        def write(_: object, tokens: Sequence[Token], at: int, *__: object) -> str:
            drawn = self._draw(tokens[at].content, is_block=is_block)
            return f'<div class="display">{drawn}</div>\n' if is_block else drawn

        return write

    def _draw(self, source: str, *, is_block: bool) -> str:
        """MathML; the source as code where it is too long, too deep, or not LaTeX."""
        source = source.strip()
        self.left -= 1
        if (
            self.left >= 0
            and len(source) <= MAX_FORMULA_CHARS
            and _nesting(source) <= MAX_FORMULA_NESTING
        ):
            try:
                drawn = convert(_known(source), display="block" if is_block else "inline")
            except Exception:  # of any class: the library indexes and converts whatever it is given
                drawn = ""
            if drawn:
                # On its own: an open tag in one formula must not swallow what stands behind it.
                return _clean(drawn)
        return f'<code class="formula">{nh3.clean_text(source)}</code>'


def _nesting(source: str) -> int:
    """How deep its braces, \\left and \\begin reach; the library calls itself for each."""
    deepest = depth = 0
    for mark in re.findall(r"\\left(?![a-z])|\\right(?![a-z])|\\begin|\\end|\\.|[{}^_]", source):
        if mark in ("{", r"\left", r"\begin"):
            depth += 1
            deepest = max(deepest, depth)
        elif mark in ("}", r"\right", r"\end"):
            depth -= 1
    # A chain such as \sqrt\sqrt\sqrt… nests without a brace.
    chain = max((len(c) for c in re.findall(r"(?:\\[a-z]+\s*){2,}", source)), default=0)
    return max(deepest, chain // 8)


def _known(source: str) -> str:
    """In the library's words: it knows `split` but not `aligned`, and writes \\text{} into its XML as it stands."""
    source = _ENVIRONMENT.sub(lambda m: m[1] + _ENVIRONMENTS[m[2]] + "}", source)
    return _TEXT_COMMAND.sub(lambda m: m[1] + escape(m[2], quote=False) + m[3], source)


def _inline_formula(state: StateInline, silent: bool) -> bool:
    r"""`\( … \)`, which models write more often than dollars, and `\[ … \]` within a line."""
    opening = state.src[state.pos : state.pos + 2]
    closing = {r"\(": r"\)", r"\[": r"\]"}.get(opening)
    if closing is None:
        return False
    end = state.src.find(closing, state.pos + 2, min(state.posMax, state.pos + MAX_FORMULA_CHARS))
    if end < 0:
        return False
    if not silent:
        token = state.push("math_inline", "math", 0)
        token.content = state.src[state.pos + 2 : end]
        token.markup = opening
    state.pos = end + 2
    return True


def _block_formula(state: StateBlock, start: int, last: int, silent: bool) -> bool:
    r"""`\[` at the beginning of a line to `\]` at the end of one."""
    first = state.bMarks[start] + state.tShift[start]
    if state.is_code_block(start) or state.src[first : first + 2] != r"\[":
        return False
    for line in range(start, last):
        if line > start and state.isEmpty(line):
            return False
        end = state.src.rfind(r"\]", state.bMarks[line], state.eMarks[line])
        if end >= first + 2 and not state.src[end + 2 : state.eMarks[line]].strip(" .,;"):
            break
    else:
        return False
    if silent:
        return True
    state.line = line + 1
    token = state.push("math_block", "math", 0)
    token.block = True
    token.content = state.src[first + 2 : end]
    token.map = [start, state.line]
    return True


def _image(
    renderer: RendererHTML,
    tokens: Sequence[Token],
    at: int,
    options: OptionsDict,
    env: MutableMapping[str, Any],
) -> str:
    """A link: a picture would tell its host who reads."""
    address = escape(str(tokens[at].attrs.get("src", "")))
    words = renderer.renderInlineAsText(tokens[at].children or [], options, env)
    return f'<a href="{address}">{escape(words) or address}</a>'


def _fence(_: object, tokens: Sequence[Token], at: int, *__: object) -> str:
    """The language stands on the block, for the page to show."""
    found = _LANGUAGE.match(tokens[at].info.strip())
    language = f' data-language="{found[0]}"' if found else ""
    return f"<pre{language}><code>{escape(tokens[at].content)}</code></pre>\n"


def _cell(_: object, tokens: Sequence[Token], at: int, *__: object) -> str:
    """Alignment as an attribute: the page's rules allow no style."""
    side = str(tokens[at].attrs.get("style", "")).removeprefix("text-align:")
    return f'<{tokens[at].tag} align="{side}">' if side else f"<{tokens[at].tag}>"
