"""What was measured of the pictures of each strategy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...errors import UsageError
from ...report.speedup import evaluated_steps, mean_speedup
from ...utils.images import read_image
from ..metrics import worst_tenth
from ..progress import Progress
from ..tables import distinct
from .gallery import Gallery, PictureRecord
from .inception import frechet_distance
from .measures import TO_REFERENCE, Measure, Measures

SERIAL = "serial"
"""The strategy that others are compared with: the stock pipeline on one device."""
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class StrategyScores:
    """One strategy over all pictures.

    Attributes:
        strategy: The name that the user has for it.
        records: One for each picture.
        values: By measure, one for each picture; None where it does not apply.
        distances: FID to the pictures of one device, and to the ground truth, as far as known.
    """

    strategy: str
    records: list[PictureRecord]
    values: dict[str, list[float | None]]
    distances: dict[str, float] = field(default_factory=dict)

    def to_dict(self, measures: Sequence[Measure]) -> dict[str, Any]:
        """The row of the strategy as plain data, ready for JSON: of each measure mean, median, and its worst tenth."""
        notes = distinct(record.notes for record in self.records)
        row: dict[str, Any] = {"strategy": self.strategy, "images": len(self.records), "notes": notes}
        for measure in measures:
            known = [value for value in self.values.get(measure.name, []) if value is not None]
            if known:
                row |= _summary(measure, known)
        speeds = [record.ideal_speedup for record in self.records if record.ideal_speedup is not None]
        if speeds:
            row["ideal_speedup"] = round(mean_speedup(speeds), 3)
        full = statistics.fmean(evaluated_steps(record.schedule) for record in self.records)
        return row | {name: round(value, 4) for name, value in self.distances.items()} | {"full_steps": round(full, 2)}


def _summary(measure: Measure, values: Sequence[float]) -> dict[str, float]:
    found = {measure.name: statistics.fmean(values)}
    if measure.name != "right":  # a share has no middle
        found[f"{measure.name}_median"] = statistics.median(values)
        found[f"{measure.name}_worst_tenth"] = worst_tenth(values, measure.is_distance)
    return {name: round(value, 5) for name, value in found.items()}


def find_pictures(folder: str) -> list[Path]:
    """The pictures in a folder and those within it.

    Raises:
        UsageError: there are less than two.
    """
    if not Path(folder).expanduser().is_dir():
        raise UsageError(f"--reference {folder} is no folder")
    found = sorted(path for path in Path(folder).expanduser().rglob("*") if path.suffix.lower() in _SUFFIXES)
    if len(found) < 2:
        raise UsageError(f"--reference {folder} holds {len(found)} images; FID needs two or more")
    return found


def score(
    gallery: Gallery,
    measures: Measures,
    reference: Sequence[Path] = (),
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[StrategyScores]:
    """Measure all pictures of a gallery; none may be missing. What the FID lacks joins what is skipped.

    Args:
        gallery: The pictures.
        measures: What is measured.
        reference: The ground truth.
        on_progress: Is told after every picture of which set it is, how many are measured, and of how many.
    """
    network, pictures = measures.features, len(gallery.configs) * len(gallery.prompts)
    total = pictures if network is None else 2 * pictures + len(reference)
    progress = Progress(lambda what, done, of: on_progress(f"measuring {what}", done, of), total)
    found = [_measure(gallery, strategy, measures.each, progress) for strategy in gallery.configs]
    if network is not None and len(gallery.prompts) < 2:
        measures.skipped["FID"] = "it takes two images or more"
    elif network is not None:
        if not reference:
            measures.skipped[TO_REFERENCE] = "there is no ground truth: give --reference FOLDER"
        truth = _features(network, "ground truth", map(read_image, reference), progress) if reference else None
        size = _add_distances(found, gallery, network, truth, progress)
        if len(gallery.prompts) <= size:
            few = f"FID of {len(gallery.prompts)} images by {size} features says little"
            measures.notes.append(f"{few}; thousands are usual")
    return found


def _measure(gallery: Gallery, strategy: str, measures: Sequence[Measure], progress: Progress) -> StrategyScores:
    """Every picture by itself."""
    own = [measure for measure in measures if strategy != SERIAL or not measure.compares]
    values: dict[str, list[float | None]] = {measure.name: [] for measure in own}
    pairs = zip(gallery.prompts, gallery.pictures(strategy), gallery.pictures(SERIAL), strict=True)
    for prompt, image, serial in progress.over(strategy, pairs):
        for measure in own:
            values[measure.name].append(measure.score(image, serial, prompt.prompt))
    return StrategyScores(strategy, gallery.records(strategy), values)


def _features(network: Any, what: str, pictures: Iterable[Image.Image], progress: Progress) -> torch.Tensor:
    """(N, D)."""
    return torch.stack([network(picture) for picture in progress.over(what, pictures)])


def _add_distances(
    scores: Sequence[StrategyScores], gallery: Gallery, network: Any, truth: torch.Tensor | None, progress: Progress
) -> int:
    """Set against set; the number of features of a picture."""
    serial = _features(network, SERIAL, gallery.pictures(SERIAL), progress)
    for one in scores:
        own = serial
        if one.strategy != SERIAL:
            own = _features(network, one.strategy, gallery.pictures(one.strategy), progress)
            one.distances["fid_serial"] = frechet_distance(own, serial)
        if truth is not None:
            one.distances["fid_reference"] = frechet_distance(own, truth)
    return serial.shape[1]
