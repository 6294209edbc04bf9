"""The process in which Math-Verify runs: `{"gold", "answer"}` in, `{"equal"}` out."""

from collections.abc import Callable, Mapping
from typing import Any

from nalar.sandbox.serve import Refusal, serve


def prepare() -> Callable[[Mapping[str, str]], dict[str, Any]]:
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError as error:
        raise Refusal(
            at="text problems",
            got=f"gold answers in LaTeX without the package math-verify ({error})",
            want="math-verify, or number answers alone",
            hint="pip install 'nalar[math]', or the setting golds=numbers",
        ) from None
    reads = [LatexExtractionConfig()]

    def answer(request: Mapping[str, str]) -> dict[str, Any]:
        gold, given = (
            parse(f"${request[which]}$", reads, parsing_timeout=None, raise_on_error=is_ours)
            for which, is_ours in (("gold", True), ("answer", False))
        )
        if not gold:
            return {"error": f"the gold answer {request['gold']!r} cannot be read"}
        equal = given and verify(gold, given, timeout_seconds=None, raise_on_error=True)
        return {"equal": bool(equal)}

    return answer


if __name__ == "__main__":
    serve(prepare)
