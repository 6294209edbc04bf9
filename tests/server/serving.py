"""A server as users start it: a process, and the address it says."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"


class Server:
    def __init__(self, process, document):
        self.process, self.document = process, document
        self.url = document["url"]

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def serving(folder, *flags):
    """Ends in SIGKILL where nothing else has ended it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nalar", "serve", str(folder), "--port", "0", "--json", *flags],
        env=os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            text += line
        yield Server(process, json.loads(text))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
