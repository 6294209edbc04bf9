"""One thread for every test: small tensors gain nothing by more, and idle threads that spin slow each other down."""

import os

# Read when torch loads, so before any test imports it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
