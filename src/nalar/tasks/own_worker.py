"""The process in which a task of the user's own runs: its file is loaded here, never in the process that trains."""

import importlib.util
import random
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from nalar.sandbox.serve import Refusal, serve


def prepare() -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    path = Path(sys.argv[2])
    module = _loaded(path)
    for name in ("make", "score"):
        if not callable(getattr(module, name, None)):
            raise Refusal(
                at=str(path),
                got=f"no function {name}",
                want="two functions: make(rng) and score(problem, answer)",
                hint="docs/tasks.md has one to copy",
            )

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if "seed" in request:
                return {"made": module.make(random.Random(request["seed"]))}
            verdict = module.score(request["problem"], request["answer"])
        except Exception as error:
            return {"error": _told(error, path)}
        if not isinstance(verdict, bool):
            return {"error": f"score() returned {verdict!r:.80}, wanted True or False"}
        return {"correct": verdict}

    return answer


def _loaded(path: Path) -> ModuleType:
    """The file as a module, its own folder first among those that it imports from."""
    spec = importlib.util.spec_from_file_location("own_task", path)
    if spec is None or spec.loader is None:
        raise Refusal(at=str(path), got="a file that is no Python", want="a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Refusal(
            at=str(path), got=_told(error, path), want="a file that loads without an error"
        ) from None
    return module


def _told(error: Exception, path: Path) -> str:
    """What went wrong, and in which line of the file."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f" in line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}: {error}{where}"[:300]


if __name__ == "__main__":
    serve(prepare)
