"""Batches under a promise: the worst image of a batch decides for all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.batches import FIDELITIES, main


def test_a_batch_takes_as_many_full_steps_as_its_worst_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "batches.json"
    sizes = ["--limit", "2", "--num-inference-steps", "12", "--output", str(output)]
    main(["--model", "tiny-sdxl", *sizes])
    rows = json.loads(output.read_text())["tiny-sdxl"]["rows"]
    assert [row["promised"] for row in rows[::5]] == list(FIDELITIES)
    for start in range(0, len(rows), 5):
        alone, *together, alike = rows[start : start + 5]
        assert (alone["batch"], alike["batch"], alike["are_alike"]) == (1, 8, True)
        assert all(row["full_steps"] >= alone["full_steps"] - 0.5 for row in together)
        assert alike["full_steps"] == together[-1]["full_steps"], "one batch holds them all"
    assert "8, alike ones together" in capsys.readouterr().out
