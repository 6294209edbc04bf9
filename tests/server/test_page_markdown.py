"""What the page shows as HTML holds nothing that acts, whatever a model writes."""

import re
import time
from html.parser import HTMLParser

import pytest

from nalar.server.markdown import MAX_CHARS, to_html

ADDRESS = re.compile(r"(https?|mailto):", re.IGNORECASE)
LOADING = {"img", "video", "audio", "iframe", "object", "embed", "link", "style", "script", "svg"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def tags_of(text: str) -> list[tuple[str, dict[str, str | None]]]:
    reader = _Reader()
    reader.feed(to_html(text))
    return reader.tags


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](&#106;avascript:alert(1))",
    "[d](data:text/html;base64,PHNjcmlwdD4=) <javascript:alert(1)> [e](vbscript:x)",
    '[a](https://x.y "t\\" onmouseover=\\"alert(1)")',
    "![a](https://tracker.example/pixel.png) ![b](javascript:alert(1))",
    '```"><img/src=x/onerror=alert(1)>\ncode\n```',
    "$\\text{<img src=x onerror=alert(1)>}$ $\\mbox{<script>alert(1)</script>}$",
    "$\\href{javascript:alert(1)}{x}$ \\(\\style{color:red}{x}\\) $\\class{a}{b}$",
    '$</math><img src=x onerror="alert(1)">$',
    "$$\n\\text{</mtext></math><svg onload=alert(1)>}\n$$",
    "<math><annotation-xml encoding='text/html'><style><img src=x onerror=alert(1)></style></math>",
    "<svg><animate onbegin=alert(1) attributeName=x></svg><iframe srcdoc='x'></iframe>",
    "|a|\n|:-:|\n|<img src=x onerror=alert(1)>|",
    "[x]: javascript:alert(1)\n\n[x] [y][x]",
    "<a href='https://x' style='position:fixed' onclick='x'>a</a>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_acts_comes_through(text):
    for tag, attributes in tags_of(text):
        assert tag not in LOADING
        assert not [
            name for name in attributes if name.startswith("on") or name in ("style", "src")
        ]
        if "href" in attributes:
            assert tag == "a" and ADDRESS.match(attributes["href"] or "")
            assert "noopener" in (attributes["rel"] or "")


def test_text_of_hostile_markup_is_still_there_to_read():
    assert "&lt;script&gt;alert(1)&lt;/script&gt; after" in to_html(
        "<script>alert(1)</script> after"
    )
    assert "after" in to_html("$\\text{<script>}$ after")
    assert "after" in to_html("$x <style> y$ after")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("**a** ~~b~~", "<strong>a</strong> <s>b</s>"),
        ("|a|b|\n|--|-:|\n|1|2|", '<td align="right">2</td>'),
        ("```python\nx < 1\n```", '<pre data-language="python"><code>x &lt; 1\n</code></pre>'),
        ("It costs $5 or $6.", "It costs $5 or $6."),
        (r"so \(x^2\)", "<msup><mi>x</mi><mn>2</mn></msup>"),
        ("so $x^2$", "<msup><mi>x</mi><mn>2</mn></msup>"),
        ("\\[\n\\frac{1}{2}\n\\]", 'display="block"'),
        ("$$\\frac{1}{2}$$", 'display="block"'),
        (r"$\begin{aligned} a &= b \end{aligned}$", "<mtable"),
        (r"$\text{a < b}$", "a&nbsp;&lt;&nbsp;b"),
        (r"\\(not a formula\\)", r"\(not a formula\)"),
        (r"$\notacommand{$", r'<code class="formula">\notacommand{</code>'),
    ],
)
def test_markdown_and_formulas(text, wanted):
    assert wanted in to_html(text)


N = MAX_CHARS
HUGE = {
    "quotes": ">" * N,
    "lists": "- " * (N // 2),
    "nested lists": "".join("  " * i + "- a\n" for i in range(220)),
    "brackets": "[" * 2999,
    "links": "[a](" * 2999,
    "many brackets": "[" * N,
    "emphasis": "*a **a " * (N // 7),
    "emphasis mixed": "*a_ " * (N // 4),
    "ticks": " ".join("`" * i for i in range(300)),
    "dollars": "$a" * (N // 2),
    "double dollars": "$$a\n" * (N // 4),
    "open formulas": "\\(" * (N // 2),
    "open blocks": "\\[\n" * (N // 3),
    "formulas": "$a^2$ " * (N // 6),
    "braces": "$" + "{" * 900 + "}" * 900 + "$",
    "roots": "$" + r"\sqrt" * 300 + " x$",
    "powers": "$" + "x^" * 900 + "x$",
    "lefts": "$" + r"\left(" * 200 + r"\right)" * 200 + "$",
    "matrices": "$" + r"\begin{matrix}" * 100 + "$",
    "texts": "$" + r"\text{" * 300 + "}" * 300 + "$",
    "table": "|a" * 500 + "\n" + "|-" * 500 + "\n" + ("|a" * 50 + "\n") * 400,
    "entities": "&" * N,
    "longer than rendered": "a*b*" * N,
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_and_nested_input_takes_bounded_time(name):
    begun = time.process_time()
    html = to_html(HUGE[name])
    assert time.process_time() - begun < 10  # at most three on an idle core
    assert html.count("<blockquote>") + html.count("<ul>") < 250
    assert isinstance(html, str)


def test_a_formula_that_nests_too_deep_is_shown_as_written():
    deep = "{" * 40 + "x" + "}" * 40
    assert f'<code class="formula">{deep}</code>' in to_html(f"${deep}$")
