"""The command `nalar`: finds the verb, and turns what can go wrong into an exit code.

0 done, 1 failed, 2 bad input, 130 interrupted. Verbs are imported when called, so `nalar --help` is instant.
"""

import contextlib
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from nalar.config import UserError, nearest
from nalar.machine import keep_freed_memory

VERBS = {
    "demo": "train the small model from random weights and show what it learned",
    "r1": "the whole R1 recipe, stage by stage, from random weights or a model that is there",
    "pretrain": "train a recipe's base model and stop before RL",
    "rl": "RL on any task, from a model that is there or a pretrained run",
    "collect": "rejection sampling: a data set out of what a model answers well",
    "sft": "fine-tune a model on dialogues",
    "reward": "train a model that scores answers, and test it for biases",
    "adopt": "make a published model ready for dialogues with thoughts",
    "tokenizer": "learn a tokenizer from a corpus of one's own",
    "eval": "measure a run's model on held-out problems",
    "samples": "show what a model said in RL, with what it earned",
    "chat": "talk to a model in the terminal",
    "serve": "answer an OpenAI-style HTTP API with a model",
    "keys": "make, list and revoke the API keys of a server",
    "usage": "what a server's keys used and what it costs, from its ledger",
    "report": "build a run's report.json and report.html again",
    "push": "upload a model to the Hugging Face hub, with a card of what was measured",
    "runs": "list the runs there are; show, compare or plot them",
    "plan": "what a recipe takes, or how large a model is; runs nothing",
    "doctor": "check that this machine has what nalar needs",
}
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_OUTSIDE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENOSPC,
    errno.EDQUOT,
}
"""What a folder or a disk can be blamed for."""

Verb = Callable[[Sequence[str]], int]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args`, sys.argv's by default. Returns the exit code."""
    args = sys.argv[1:] if args is None else list(args)
    _never_fail_to_print()
    # Read when torch loads. By default an idle OpenMP thread spins for so long that on two cores shared
    # with anything else a step takes 5 to 20 times as long (LOG.md); with a short spin it costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_freed_memory()
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(args, error, BAD_INPUT)
    except KeyboardInterrupt:
        interrupt = UserError(at=_at(args), got="an interrupt", want="to run to its end")
        return _fail(args, interrupt, INTERRUPTED)
    except BrokenPipeError:
        _write_no_more()
        return FAILED
    except OSError as error:
        if error.errno not in _OUTSIDE:
            return _bug(args, error)
        at = str(error.filename or _at(args))
        got, want = error.strerror or str(error), "a place that can be read and written"
        return _fail(args, UserError(at=at, got=got, want=want), BAD_INPUT)
    except Exception as error:
        return _bug(args, error)


def _bug(args: Sequence[str], error: Exception) -> int:
    traceback.print_exc()
    got = f"{type(error).__name__}: {error}"
    bug = UserError(at=_at(args), got=got, want="no error: this is one of nalar's own")
    return _fail(args, bug, FAILED)


def _never_fail_to_print() -> None:
    """What a terminal's encoding lacks is escaped, in JSON's own way, instead of ending a run."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _dispatch(args: Sequence[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return DONE if args else BAD_INPUT
    if args[0] == "--version":
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"nalar {version('nalar')}")
        except PackageNotFoundError:
            print("nalar, not installed")
        return DONE
    verb = args[0]
    if verb not in VERBS:
        close = nearest(verb, VERBS)
        hint = f"nalar {close}" if close else "nalar --help"
        raise UserError(at="nalar", got=repr(verb), want="one of " + ", ".join(VERBS), hint=hint)
    run: Verb = importlib.import_module(f"nalar.cli.{verb}").run
    return run(args[1:])


def _at(args: Sequence[str]) -> str:
    return f"nalar {args[0]}" if args and args[0] in VERBS else "nalar"


def _fail(args: Sequence[str], error: UserError, code: int) -> int:
    """Say it to people, and to a program that asked for JSON."""
    from nalar.evals.text import printable

    try:
        print(printable(str(error)), file=sys.stderr, flush=True)
        if "--json" in args:
            from nalar.cli.output import ErrorBody, ErrorDocument, Output

            Output(json=True).document(ErrorDocument(error=ErrorBody.of(error)))
        sys.stdout.flush()
    except OSError:
        _write_no_more()
    return code


def _write_no_more() -> None:
    """Whoever read our output went away, or its disk is full: nothing more may be written, at exit neither."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return f"""usage: nalar VERB ...

From an empty folder to a model that learned to reason, with a receipt for what it cost.

{verbs}

`nalar VERB --help` says more. Every verb takes --json: one JSON document on stdout, all else on stderr.
Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.

Try on a laptop:  nalar demo"""


if __name__ == "__main__":
    sys.exit(main())
