"""Chat templates, rendered as transformers renders them, in a sandbox and within bounds. Imports no torch."""

import datetime
import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from nalar.config import UserError
from nalar.server.dialects.controls import TEMPLATE_SWITCHES
from nalar.server.dialects.veil import Veil

MAX_RENDER_S = 10.0
MAX_RENDER_CHARS = 2**25


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: what stands in it is rendered like anything else."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own form

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Rendering(threading.local):
    """What holds for the one rendering that a thread is about: nobody waits for another's."""

    until_s = float("inf")
    veil: Veil | None = None


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Stops a template that takes too long, wherever it looks something up or calls something."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        self.filters["tojson"] = self._tojson
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _now
        self.rendering = _Rendering()

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers has it: nothing is escaped for HTML."""
        veil = self.rendering.veil
        written = json.dumps(
            value if veil is None else veil.show_all(value),
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
        return written if veil is None else veil.hide(written)

    def _check_time(self) -> None:
        if time.monotonic() > self.rendering.until_s:
            raise jinja2.TemplateError(f"it took more than {MAX_RENDER_S:g} s")

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._check_time()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._check_time()
        return super().getitem(obj, argument)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_time()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """No numbers and texts that grow beyond all bounds."""
        sizes = [len(one) if isinstance(one, str | list | tuple) else one for one in (left, right)]
        if not all(isinstance(size, int | float) and abs(size) <= 10**6 for size in sizes) or (
            operator == "**" and abs(right) > 64
        ):
            raise jinja2.TemplateError(f"{operator} of something large")
        return super().call_binop(context, operator, left, right)


class Template:
    """One chat template."""

    def __init__(self, text: str, *, at: str) -> None:
        """at: where it stood. UserError where it is no template."""
        self._environment = _Environment()
        try:
            names = {n.name for n in self._environment.parse(text).find_all(jinja2.nodes.Name)}
            self._template = self._environment.from_string(text)
        except (jinja2.TemplateError, RecursionError) as error:
            got = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise UserError(at=at, got=f"{got}{error}", want="a chat template in Jinja") from error
        self.text = text
        self.switches_thinking = not names.isdisjoint(TEMPLATE_SWITCHES)
        """Whether it knows a variable that switches thinking on or off."""

    def render(self, variables: Mapping[str, Any], veil: Veil | None = None) -> str:
        """From any thread. veil: what hides texts among the variables. UserError where the template refuses, and where
        it breaks bounds."""
        rendering = self._environment.rendering
        rendering.until_s, rendering.veil = time.monotonic() + MAX_RENDER_S, veil
        try:
            return "".join(_bounded(self._template.generate(**variables)))
        except Exception as error:  # whatever it is, these messages cannot be rendered
            got = f"{type(error).__name__}: {error}".removeprefix("TemplateError: ")[:300]
            raise UserError(
                at="messages",
                got=got if veil is None else veil.show(got),
                want="messages that the model's chat template takes",
            ) from error
        finally:
            rendering.until_s, rendering.veil = float("inf"), None


def _bounded(texts: Iterator[str]) -> Iterator[str]:
    size = 0
    for text in texts:
        size += len(text)
        if size > MAX_RENDER_CHARS:
            raise jinja2.TemplateError(f"more than {MAX_RENDER_CHARS} characters")
        yield text


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
