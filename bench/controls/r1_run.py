"""One part of one seed, within a limit of seconds: `python -m controls.r1_run RECIPE SEED WORK PART SECONDS`."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from controls.finished import say
from controls.r1_parts import PARTS
from controls.r1_place import DONE, REFUSED, Place
from nalar.config import UserError
from nalar.pipeline.state import Outcome


def go_on(place: Place, part: str, seconds: float) -> Outcome:
    """From wherever the part is."""
    until = time.monotonic() + seconds
    folder = place.folder(part)
    outcome = PARTS[part](place, lambda: time.monotonic() > until)
    if outcome is Outcome.FINISHED:
        (folder / DONE).write_text("")
    return outcome


def main(args: Sequence[str]) -> int:
    recipe, seed, work, part, seconds = args
    place = Place(recipe, int(seed), Path(work))
    try:
        say(f"{part}: {go_on(place, part, float(seconds)).value}")
    except UserError as error:
        say(str(error))
        place.folder(part).mkdir(parents=True, exist_ok=True)
        (place.folder(part) / REFUSED).write_text(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
