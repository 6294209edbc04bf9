"""A process that appends rows from many tasks and prints each id once `add` has returned. The test kills it."""

import asyncio
import itertools
import sys
from pathlib import Path

from nalar.server.ledger import Ledger, Row
from nalar.server.ledger_writer import LedgerWriter


async def main(path: Path, name: str, tasks: int) -> None:
    writer = LedgerWriter(Ledger.open(path))
    numbers = itertools.count()

    async def ask() -> None:
        for number in numbers:
            row = Row(
                request_id=f"{name}-{number}",
                time_s=1.8e9,
                key_id="key-1",
                endpoint="/v1/chat/completions",
                model="m",
                prompt_tokens=7,
                completion_tokens=3,
                cost_usd=1e-6,
            )
            await writer.add(row)
            print(row.request_id, flush=True)

    await asyncio.gather(*(ask() for _ in range(tasks)))


asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
