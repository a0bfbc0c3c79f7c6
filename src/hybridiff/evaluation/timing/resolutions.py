"""Speed-up against resolution: measured where images fit, predicted beyond from the costs measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .contenders import SERIAL

POWERS = (1, 0, 2)
"""Of the pixels: what convolutions and linear layers cost, what a call does at any size, what attention does.

Through two points several pairs of terms are exact; the first one holds, which grows least beyond them.
"""


def fit_seconds(pixels: Sequence[float], seconds: Sequence[float]) -> Callable[[float], float]:
    """Time as a polynomial of the number of pixels without negative terms, by least squares of relative errors.

    Args:
        pixels: Of the images that were measured.
        seconds: What they took.
    """
    unit = max(pixels)
    most = max(2, len(pixels) - 1)  # through as many terms as points a curve follows their noise
    factors = _non_negative([[(place / unit) ** power for place in pixels] for power in POWERS], seconds, most)
    return lambda place: sum(f * (place / unit) ** power for f, power in zip(factors, POWERS, strict=True))


def predict(rows: Sequence[dict[str, Any]], resolutions: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of further resolutions: what serial would take by its own times, the others as share of it and a constant.

    Args:
        rows: Measured at two resolutions at least; see `comparison.make_rows`. Schedules are alike at all of them.
        resolutions: Sides of the further images in pixels.
    """
    points = _points(rows)
    sizes, serial = zip(*points[SERIAL.label, SERIAL.devices], strict=True)
    serial_at = fit_seconds(sizes, serial)
    shares = {
        name: _non_negative([serial, [1.0] * len(serial)], [seconds for _, seconds in own], 2)
        for name, own in points.items()
    }
    return [
        {
            "strategy": label,
            "devices": devices,
            "resolution": resolution,
            "is_predicted": True,
            "denoising_seconds": share * serial_at(resolution**2) + constant,
            "speedup": serial_at(resolution**2) / (share * serial_at(resolution**2) + constant),
        }
        for resolution in resolutions
        for (label, devices), (share, constant) in shares.items()
    ]


def _non_negative(terms: Sequence[Sequence[float]], seconds: Sequence[float], most: int) -> list[float]:
    """Factors of terms, none negative and at most so many not 0, whose sum has the least squares of relative errors.

    Of equal sums that of fewer terms, and of the first ones.
    """
    table = np.stack([np.asarray(term) / np.asarray(seconds) for term in terms], axis=1)
    best = float("inf"), [0.0] * len(terms)
    for count in range(1, min(most, len(seconds)) + 1):
        for chosen in itertools.combinations(range(len(terms)), count):
            found = np.linalg.lstsq(table[:, chosen], np.ones(len(seconds)), rcond=None)[0]
            error = float(np.square(table[:, chosen] @ found - 1).sum())
            if (found >= 0).all() and error < best[0] - 1e-12:
                factors = dict(zip(chosen, map(float, found), strict=True))
                best = error, [factors.get(term, 0.0) for term in range(len(terms))]
    return best[1]


def check_prediction(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest resolution as it is predicted from the smaller ones, beside what was measured; none of fewer than 3.

    Returns:
        Of each strategy but serial: strategy, devices, resolution, `measured` and `predicted` speed-up, and the
        `error` of the latter as a share of the former.
    """
    sizes = sorted({row["resolution"] for row in rows})
    if len(sizes) < 3:
        return []
    predicted = predict([row for row in rows if row["resolution"] != sizes[-1]], sizes[-1:])
    measured = {(row["strategy"], row["devices"]): row["speedup"] for row in rows if row["resolution"] == sizes[-1]}
    checks = []
    for row in predicted:
        true = measured[row["strategy"], row["devices"]]
        if (row["strategy"], row["devices"]) != (SERIAL.label, SERIAL.devices):
            named = {name: row[name] for name in ("strategy", "devices", "resolution")}
            checks.append(named | {"measured": true, "predicted": row["speedup"], "error": row["speedup"] / true - 1})
    return checks


def _points(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[tuple[float, float]]]:
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        points = found.setdefault((row["strategy"], row["devices"]), [])
        points.append((float(row["resolution"] ** 2), row["denoising_seconds"]))
    return found
