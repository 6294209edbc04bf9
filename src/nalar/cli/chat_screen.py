"""One reply on the screen: thought dim, calls and outputs in a colour, the answer bold, what it took behind it."""

from collections.abc import Iterable

from rich.text import Text

from nalar.agent.loop import Answered
from nalar.agent.speech import Piece
from nalar.cli.output import Output
from nalar.evals.text import printable
from nalar.server.prices_config import PriceTable

_STYLES = {
    "thought": "dim italic",
    "answer": "bold",
    "call": "cyan",
    "arguments": "cyan",
    "output": "cyan",
}
_WHY_CUT = {
    "length": " [cut by max_tokens, or by the model's context]",
    "max_calls": " [stopped: it went on calling tools beyond --max-calls]",
    "content_filter": " [withheld by the server]",
}


class Screen:
    """A model's bytes are not to be trusted with the terminal: what could be a control code is replaced, not sent."""

    def __init__(self, out: Output, *, prices: PriceTable | None = None, with_footer: bool) -> None:
        self.out, self.prices, self._with_footer = out, prices, with_footer

    def show(self, pieces: Iterable[Piece | Answered]) -> Answered:
        """Stream a reply; returns the whole, which comes last."""
        before = ""
        for piece in pieces:
            if isinstance(piece, Answered):
                self.write(_WHY_CUT.get(piece.finish_reason, ""), style="yellow")
                self.out.text("")
                return piece
            self.write(_between(before, piece.kind), style="dim")
            self.write(piece.text, style=_STYLES[piece.kind])
            before = piece.kind
        raise RuntimeError("the reply ended without its last piece")

    def footer(self, said: Answered, wall_s: float) -> None:
        """What a reply took, where people look on."""
        if self._with_footer:
            self.out.text(_footer(said, wall_s, self.prices), style="dim")

    def write(self, text: str, *, style: str) -> None:
        shown = printable(text.replace("\t", "    "))
        self.out.console.print(Text(shown, style=style), end="", soft_wrap=True)
        self.out.console.file.flush()


def _between(before: str, kind: str) -> str:
    """What stands between two pieces; nothing within a text that comes in parts."""
    if kind == "output":  # comes whole: calls side by side are answered one below the other
        return "\n = " if before == kind else " = "
    if before == kind:
        return ""
    if kind == "answer":
        return "\n→ " if before else ""
    if kind == "arguments":
        return " "
    if kind == "call":
        return "\n" if before else ""
    return "\n" if before in ("output", "answer") else ""


def _footer(said: Answered, wall_s: float, prices: PriceTable | None) -> str:
    """Such as `412 tokens, 300 of them thought · 3.2 s · 128 tok/s · 0.00021 USD`."""
    usage = said.usage
    parts = [f"{usage.completion_tokens} tokens"]
    if usage.reasoning_tokens:
        parts[0] += f", {usage.reasoning_tokens} of them thought"
    if said.calls:
        parts.append(f"{len(said.calls)} call{'s' * (len(said.calls) > 1)}")
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts.append(f"read {usage.prompt_tokens}{cached}")
    parts.append(f"{wall_s:.1f} s")
    if wall_s > 0:
        parts.append(f"{usage.completion_tokens / wall_s:.0f} tok/s")
    cost = cost_usd(said, prices)
    if cost is not None:
        parts.append(f"{cost:.6f} USD")
    return " · ".join(parts)


def cost_usd(said: Answered, prices: PriceTable | None) -> float | None:
    """As the server says; else by the prices that were given."""
    if said.usage.cost_usd is not None or prices is None:
        return said.usage.cost_usd
    return prices.cost_usd(said.usage)
