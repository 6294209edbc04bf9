import pytest

from load import MODELS, Loaded, make_folder, measure, rows_of
from nalar.model.shards import stored_tensors


@pytest.mark.slow
def test_loading_many_shards_holds_the_weights_once(tmp_path):
    """The bound of 1.15, interpreter aside: here the weights are smaller than it."""
    config = MODELS["mixture"].model_copy(update={"num_hidden_layers": 3, "vocab_size": 4000})
    make_folder(config, tmp_path, shards=6)
    assert len({stored.path for stored in stored_tensors(tmp_path).values()}) == 6
    seen = measure("nalar", tmp_path, "bfloat16")
    stored = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert seen.weight_bytes == pytest.approx(stored, rel=0.02)
    assert 0.9 < (seen.peak_bytes - seen.base_bytes) / seen.weight_bytes < 1.15


def test_a_row_holds_the_worst_peak_and_the_median_time():
    ours = [Loaded(100, 10, 115, 3.0), Loaded(100, 20, 120, 1.0), Loaded(100, 10, 112, 2.0)]
    theirs, floor = [Loaded(100, 10, 310, 4.0)], [Loaded(100, 0, 100, 1.0)]
    peak, above, seconds = rows_of("m", {"nalar": ours, "transformers": theirs, "read": floor})
    assert (peak["value"], peak["peer_value"]) == (1.2, 3.1)
    assert (above["value"], above["peer_value"]) == (1.05, 3.0)
    assert (seconds["value"], seconds["peer_value"], seconds["roofline_frac"]) == (2.0, 4.0, 0.5)
