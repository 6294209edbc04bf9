from pathlib import Path

import pytest

from nalar.config import UserError
from nalar.pipeline.preflight import existing_parent, refuse_if_not_writable, this_machine


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(UserError, match="file"):
        refuse_if_not_writable(tmp_path / "runs" / "a")


def test_looking_for_a_place_to_write_leaves_nothing_behind(tmp_path):
    refuse_if_not_writable(tmp_path / "deep" / "down")
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_a_disk_that_is_not_there_yet_is_measured_where_it_would_lie(tmp_path):
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert this_machine(tmp_path / "a").free_disk_bytes > 0
    assert existing_parent(Path("/no/such/place")) == Path("/")
