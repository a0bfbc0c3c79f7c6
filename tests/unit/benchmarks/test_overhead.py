"""What steps cost beside a network that costs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import overhead


def test_every_way_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "STEPS", (6, 10))
    output = tmp_path / "overhead.json"
    overhead.main(["--models", "tiny-sdxl", "--repeats", "1", "--output", str(output)])
    rows = {row["way"]: row for row in json.loads(output.read_text())["tiny-sdxl"]}
    assert list(rows) == list(overhead.WAYS)
    assert rows["hybrid, full steps"]["kinds"] == {"full": 10}
    assert rows["hybrid, cached steps"]["kinds"]["cached"] > 4
    assert all({"step_ms", "call_ms"} <= row.keys() for row in rows.values())
    assert "hybrid, promise of 50 dB" in capsys.readouterr().out
