from pathlib import Path


def write_r1_table(results: Path, doc: Path) -> None:
    raise NotImplementedError
