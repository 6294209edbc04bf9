import json

import agreement


def test_engine_and_forward_agree_and_deterministic_mode_knows_no_company(tmp_path):
    out = tmp_path / "agreement.json"
    agreement.main(["--tiny", "--device", "cpu", "--out", str(out)])
    rows = {row["name"]: row["value"] for row in json.loads(out.read_text())["rows"]}
    assert rows["deterministic: batch 1 as batch 3"] == 1
    for name in ("engine", "deterministic"):
        assert rows[f"{name}: difference, quantile 1.0"] < 1e-4
        assert abs(rows[f"{name}: KL(engine, trainer), k3"]) < 1e-6
