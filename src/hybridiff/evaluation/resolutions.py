"""Speed-up against resolution: measured where images fit, predicted beyond from the costs measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from .contenders import SERIAL

POWERS = (2, 1, 0)
"""Of the pixels: what attention costs, what convolutions and linear layers do, what a call costs at any size."""


def fit_seconds(pixels: Sequence[float], seconds: Sequence[float]) -> Callable[[float], float]:
    """Time as a polynomial of the number of pixels without negative terms, by least squares of relative errors.

    Args:
        pixels: Of the images that were measured.
        seconds: What they took.
    """
    import numpy as np

    places, times = np.asarray(pixels, dtype=float), np.asarray(seconds, dtype=float)
    unit = places.max()
    best: tuple[float, dict[int, float]] = (float("inf"), {})
    # No term may be negative: the best of all choices of terms whose coefficients come out so.
    for count in range(1, min(len(POWERS), len(places)) + 1):
        for powers in itertools.combinations(POWERS, count):
            terms = np.stack([(places / unit) ** power / times for power in powers], axis=1)
            found = np.linalg.lstsq(terms, np.ones(len(places)), rcond=None)[0]
            error = float(np.square(terms @ found - 1).sum())
            if (found >= 0).all() and error < best[0] - 1e-12:
                best = error, dict(zip(powers, found, strict=True))
    return lambda place: float(sum(factor * (place / unit) ** power for power, factor in best[1].items()))


def predict(rows: Sequence[dict[str, Any]], resolutions: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of further resolutions: for every strategy what its denoising would take, by its own measured times.

    Args:
        rows: Measured at two resolutions at least; see `comparison.make_rows`. Schedules are alike at all of them.
        resolutions: Sides of the further images in pixels.
    """
    times = {name: fit_seconds(*zip(*points, strict=True)) for name, points in _points(rows).items()}
    serial = times[SERIAL.label, SERIAL.devices]
    return [
        {
            "strategy": label,
            "devices": devices,
            "resolution": resolution,
            "is_predicted": True,
            "denoising_seconds": time(resolution**2),
            "speedup": serial(resolution**2) / time(resolution**2),
        }
        for resolution in resolutions
        for (label, devices), time in times.items()
    ]


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
