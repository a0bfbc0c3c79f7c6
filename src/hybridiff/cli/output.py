"""Where results go: pictures, and next to them the report and the discrepancy curve of their run."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..launch.protocol import Generation
from ..report.plots import image_sheet, plot_discrepancy
from ..report.report import write_chrome_trace

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Output:
    """The files of one generation: `picture.png`, `picture-1.png` ..., `picture.json`, `picture-discrepancy.png`.

    Several pictures come with a sheet.

    Attributes:
        folder: Where they go.
        stem: What their names begin with.
        suffix: Of the pictures.
    """

    folder: Path
    stem: str
    suffix: str

    @staticmethod
    def parse(path: str) -> Output:
        """The output that a path names; a folder stands for `picture.png` in it.

        Raises:
            ValueError: the suffix is not that of a picture.
        """
        target = Path(path).expanduser()
        if path.endswith("/") or target.is_dir() or not target.suffix:
            return Output(target, "picture", ".png")
        if target.suffix.lower() not in SUFFIXES:
            raise ValueError(f"cannot write a picture as {target.name!r}; use one of {', '.join(SUFFIXES)}")
        return Output(target.parent, target.stem, target.suffix)

    @staticmethod
    def file(path: str, suffix: str) -> Output:
        """The output of one further file a generation, such as a trace; its folder is made.

        Raises:
            ValueError: it is a folder, has another suffix, or nothing can be written there.
        """
        target = Path(path).expanduser()
        if target.is_dir() or target.suffix.lower() != suffix:
            raise ValueError(f"{path!r} must name a {suffix} file")
        output = Output(target.parent, target.stem, target.suffix)
        output.prepare()
        return output

    @property
    def path(self) -> Path:
        """The file itself, or the first picture."""
        return self._path("")

    def numbered(self, number: int, of: int) -> Output:
        """The output of one prompt of several, counted from 1."""
        return self if of == 1 else Output(self.folder, f"{self.stem}-{number:0{max(3, len(str(of)))}}", self.suffix)

    def prepare(self) -> None:
        """Make the folder and see that files can be written there.

        Raises:
            ValueError: they cannot.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ValueError(f"cannot write to the output folder {self.folder}: {error.strerror}") from error

    def write(self, generation: Generation, facts: dict[str, Any]) -> list[Path]:
        """Write pictures, report and curve; the paths written, the pictures first.

        Args:
            generation: Pictures and report.
            facts: What else the report should say: the prompt, the settings.
        """
        images = generation.images
        pictures = [self._path(f"-{number}" if number else "") for number in range(len(images))]
        for image, path in zip(images, pictures, strict=True):
            image.save(path)
        written = list(pictures)
        if len(images) > 1:
            written.append(self._path("-sheet"))
            image_sheet(images).save(written[-1])
        report = self.folder / f"{self.stem}.json"
        curve = self.folder / f"{self.stem}-discrepancy.png"
        content = generation.report.to_dict() | {"seed": generation.seed, "images": [path.name for path in pictures]}
        report.write_text(json.dumps(content | facts, indent=2) + "\n", encoding="utf-8")
        plot_discrepancy(generation.report, curve, title=str(facts.get("prompt", "")))
        return [*written, report, curve]

    def write_trace(self, generation: Generation) -> Path:
        """Write what each rank did when; the path written. See `trace.write_chrome_trace`."""
        write_chrome_trace(generation.report, self.path)
        return self.path

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.stem}{ending}{self.suffix}"
