"""One layout for the results of all benches: what ran where, and rows with a peer's figure and a roofline."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nalar.disk import encode, write_atomic
from nalar.machine import environment
from nalar.run import now


@dataclass(frozen=True)
class Row:
    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    """In the same unit, from the same run."""
    roofline_frac: float | None = None


def record(path: Path, command: str, rows: Sequence[Row]) -> None:
    """Print the rows and write them with hardware, commit and date."""
    for row in rows:
        peer = f"   {row.peer}: {row.peer_value:.6g}" if row.peer_value is not None else ""
        share = f"   {row.roofline_frac:.0%} of the roofline" if row.roofline_frac else ""
        print(f"{row.name:44} {row.value:12.6g} {row.unit}{peer}{share}")
    where = environment()
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{where.cpu}, {where.cores} cores, {torch.get_num_threads()} threads"
    )
    document = {
        "hardware": device,
        "commit": f"{where.commit}{' with edits' if where.dirty else ''}",
        "date": now()[:10],
        "command": command,
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, encode(document, indent=2) + b"\n")
