"""What goes wrong in a stage of a pipeline, said as the user of a pipeline can use it. Imports no torch."""

import re
from collections.abc import Mapping
from typing import Any

from nalar.config import UserError
from nalar.pipeline.r1_config import R1Config

_FLAG = re.compile(r"--([a-z][\w-]*(?:\.[a-z][\w-]*)*)(?: (\d[\w.]*))?")


def of_stage(config: R1Config, stage: str, error: UserError) -> UserError:
    """The error of a stage's own run, with the stage's name; flags of its verb as the --set of a pipeline."""
    name = f"stage {stage}"  # some stages name themselves
    at = error.at if error.at.startswith(name) else f"{name}: {error.at}"
    hint = error.hint and as_settings(error.hint, stage, config.settings(stage).model_dump())
    return UserError(at=at, got=error.got, want=error.want, hint=hint)


def as_settings(text: str, stage: str, settings: Mapping[str, Any]) -> str:
    """`--rl.max-tokens 64` as `--set rl1.rl.max_tokens=64`; what is no setting of the stage stays as it is."""

    def said(found: re.Match[str]) -> str:
        names = found[1].replace("-", "_").split(".")
        if _has(settings, names):
            return f"--set {stage}.{'.'.join(names)}" + (f"={found[2]}" if found[2] else "")
        off = [*names[:-1], names[-1].removeprefix("no_")]
        if off != names and _has(settings, off):
            return f"--set {stage}.{'.'.join(off)}=false"
        return found[0]

    return _FLAG.sub(said, text)


def _has(settings: Mapping[str, Any], names: list[str]) -> bool:
    place: Any = settings
    for name in names:
        if not isinstance(place, Mapping) or name not in place:
            return False
        place = place[name]
    return True
