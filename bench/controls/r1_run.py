"""One part of one seed, until a time: `python -m controls.r1_run RECIPE SEED WORK PART UNTIL`.

UNTIL is by the clock of time.monotonic(), which all processes of a machine share, so that the time that imports take,
on a machine with much to do, counts too.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from controls.finished import say
from controls.r1_parts import PARTS
from controls.r1_place import DONE, REFUSED, Place
from nalar.config import UserError
from nalar.pipeline.state import Outcome


def go_on(place: Place, part: str, until: float) -> Outcome:
    """From wherever the part is."""
    folder = place.folder(part)
    outcome = PARTS[part](place, lambda: time.monotonic() > until)
    if outcome is Outcome.FINISHED:
        (folder / DONE).write_text("")
    return outcome


def main(args: Sequence[str]) -> int:
    recipe, seed, work, part, until = args
    place = Place(recipe, int(seed), Path(work))
    try:
        say(f"{part}: {go_on(place, part, float(until)).value}")
    except UserError as error:
        say(str(error))
        place.folder(part).mkdir(parents=True, exist_ok=True)
        (place.folder(part) / REFUSED).write_text(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
