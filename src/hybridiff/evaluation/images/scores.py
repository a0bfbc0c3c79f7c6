"""What was measured of the pictures of each strategy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...errors import UsageError
from ...utils.images import read_image
from ..metrics import worst_tenth
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
        row: dict[str, Any] = {"strategy": self.strategy, "images": len(self.records)}
        for measure in measures:
            known = [value for value in self.values.get(measure.name, []) if value is not None]
            if known:
                row |= _summary(measure, known)
        speeds = [record.ideal_speedup for record in self.records if record.ideal_speedup is not None]
        if speeds:
            row["ideal_speedup"] = round(statistics.fmean(speeds), 3)
        full = statistics.fmean(record.schedule.count("f") for record in self.records)
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
    scorer = _Scorer(gallery, measures, reference, on_progress)
    found = [scorer.measure(strategy) for strategy in gallery.configs]
    if measures.features is not None and len(gallery.prompts) < 2:
        measures.skipped["FID"] = "it takes two images or more"
    elif measures.features is not None:
        scorer.add_distances(found)
    return found


class _Scorer:
    """Tells of progress while it measures a gallery."""

    def __init__(self, gallery: Gallery, measures: Measures, reference: Sequence[Path], on_progress: Any) -> None:
        self._gallery, self._measures, self._reference = gallery, measures, reference
        self._on_progress, self._done = on_progress, 0
        self._total = len(gallery.configs) * len(gallery.prompts) * (1 if measures.features is None else 2)
        self._total += len(reference) if measures.features is not None else 0

    def measure(self, strategy: str) -> StrategyScores:
        """Every picture by itself."""
        gallery = self._gallery
        own = [measure for measure in self._measures.each if strategy != SERIAL or not measure.compares]
        values: dict[str, list[float | None]] = {measure.name: [] for measure in own}
        for number, prompt in enumerate(gallery.prompts):
            image, serial = gallery.read(strategy, number), gallery.read(SERIAL, number)
            for measure in own:
                values[measure.name].append(measure.score(image, serial, prompt.prompt))
            self._tell(strategy)
        return StrategyScores(strategy, gallery.records(strategy), values)

    def add_distances(self, scores: Sequence[StrategyScores]) -> None:
        """Set against set."""
        measures, truth = self._measures, None
        if self._reference:
            truth = self._features("ground truth", map(read_image, self._reference))
        else:
            measures.skipped[TO_REFERENCE] = "there is no ground truth: give --reference FOLDER"
        serial = self._features(SERIAL, self._pictures(SERIAL))
        for one in scores:
            own = serial
            if one.strategy != SERIAL:
                own = self._features(one.strategy, self._pictures(one.strategy))
                one.distances["fid_serial"] = frechet_distance(own, serial)
            if truth is not None:
                one.distances["fid_reference"] = frechet_distance(own, truth)
        pictures, size = serial.shape
        if pictures <= size:
            measures.notes.append(f"FID of {pictures} images by {size} features says little; thousands are usual")

    def _features(self, what: str, pictures: Iterable[Image.Image]) -> torch.Tensor:
        """(N, D)."""
        network: Any = self._measures.features
        found = []
        for picture in pictures:
            found.append(network(picture))
            self._tell(what)
        return torch.stack(found)

    def _pictures(self, strategy: str) -> Iterator[Image.Image]:
        for number in range(len(self._gallery.prompts)):
            yield self._gallery.read(strategy, number)

    def _tell(self, what: str) -> None:
        self._done += 1
        self._on_progress(f"measuring {what}", self._done, self._total)
