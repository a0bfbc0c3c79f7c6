"""Promises beside tolerances of the same fidelity."""

from __future__ import annotations

from typing import Any

from hybridiff.evaluation.frontier.beside import MEASURES, beside_tolerances


def row(method: str, speed: float, mean: float, worst: float, **config: Any) -> dict[str, Any]:
    return {"method": method, "ideal_speedup": speed, "psnr": mean, "psnr_worst_tenth": worst, "config": config}


TOLERANCES = [
    row("cached", 3.0, 60.0, 50.0, tolerance=0.1),
    row("cached", 4.0, 50.0, 40.0, tolerance=0.2),
    row("cached", 2.8, 52.0, 30.0, tolerance=0.15),  # beaten by the first one
    row("cached", 9.0, 90.0, 90.0, tolerance=0.1, devices=1),
]
EXACT = row("quality", 2.0, 100.0, 100.0, strategy="hybrid", quality=1.0)


def test_speeds_are_compared_where_both_keep_the_same() -> None:
    promises = [
        row("fidelity", 6.0, 40.0, 40.0, fidelity=35.0),
        row("fidelity", 3.0, 80.0, 75.0, fidelity=65.0),
    ]
    assert beside_tolerances([*TOLERANCES, *promises, EXACT]) == [
        ("promised", "mean", "worst tenth"),
        ("65", "+20%", "+20%"),  # half way from all steps full, at 2x, to the first tolerance
        ("35", "-", "+50%"),  # in the mean less than any tolerance
    ]


def test_measures_stand_where_all_rows_have_them() -> None:
    promise = row("fidelity", 4.0, 50.0, 50.0, fidelity=45.0)
    rows = [one | {"psnr_pooled": 50.0, "psnr_counted": 50.0} for one in (*TOLERANCES, EXACT, promise)]
    # Other solvers are compared elsewhere.
    other = row("solvers-hybrid", 4.0, 50.0, 50.0, fidelity=45.0)
    table = beside_tolerances([*rows, other])
    assert table[0] == ("promised", *MEASURES)
    assert [line[0] for line in table[1:]] == ["45"]


def test_without_tolerances_promises_or_all_steps_full_there_is_nothing_to_compare() -> None:
    promise = row("fidelity", 4.0, 50.0, 50.0, fidelity=45.0)
    for rows in ([], TOLERANCES, [*TOLERANCES, EXACT], [promise, EXACT], [*TOLERANCES, promise]):
        assert beside_tolerances(rows) == []
