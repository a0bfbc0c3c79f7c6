"""Where results go: images, and next to them the report and the discrepancy curve of their run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.ExifTags import IFD, Base
from PIL.Image import Exif, Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from .. import __version__
from ..errors import UsageError
from ..launch.protocol import Generation
from ..report.plots import image_sheet, plot_discrepancy
from ..report.timeline import write_chrome_trace

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Output:
    """The files of one generation: `image.png`, `image-1.png` ..., `image.json`, `image-discrepancy.png`.

    Several images come with a sheet.

    Attributes:
        folder: Where they go.
        stem: What their names begin with.
        suffix: Of the images.
    """

    folder: Path
    stem: str
    suffix: str

    @staticmethod
    def parse(path: str) -> Output:
        """The output that a path names; a folder stands for `image.png` in it.

        Raises:
            UsageError: the suffix is not that of an image.
        """
        target = Path(path).expanduser()
        if path.endswith("/") or target.is_dir() or not target.suffix:
            return Output(target, "image", ".png")
        if target.suffix.lower() not in SUFFIXES:
            raise UsageError(f"cannot write an image as {target.name!r}; use one of {', '.join(SUFFIXES)}")
        return Output(target.parent, target.stem, target.suffix)

    @staticmethod
    def file(path: str, suffix: str) -> Output:
        """The output of one further file per generation, such as a trace; its folder is made.

        Raises:
            UsageError: it is a folder, has another suffix, or nothing can be written there.
        """
        target = Path(path).expanduser()
        if target.is_dir() or target.suffix.lower() != suffix:
            raise UsageError(f"{path!r} must name a {suffix} file")
        output = Output(target.parent, target.stem, target.suffix)
        output.prepare()
        return output

    @property
    def path(self) -> Path:
        """The file itself, or the first image."""
        return self._path("")

    def numbered(self, number: int, of: int) -> Output:
        """The output of one prompt of several, counted from 1."""
        return self if of == 1 else Output(self.folder, f"{self.stem}-{number:0{max(3, len(str(of)))}}", self.suffix)

    def prepare(self) -> None:
        """Make the folder and see that files can be written there.

        Raises:
            UsageError: they cannot.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise UsageError(f"cannot write to the output folder {self.folder}: {error.strerror}") from error

    def write(self, generation: Generation, facts: dict[str, Any]) -> list[Path]:
        """Write images, report and curve; the paths written, the images first.

        Args:
            generation: Images and report.
            facts: How they were made, for the images and the report: model, prompt, settings.
        """
        facts = {"seed": generation.seed, **facts}
        images = list(generation.images)
        paths = [self._path(f"-{number}" if number else "") for number in range(len(images))]
        content = generation.report.to_dict() | {"images": [path.name for path in paths]}
        if len(images) > 1:
            images.append(image_sheet(images))
            paths.append(self._path("-sheet"))
        for image, path in zip(images, paths, strict=True):
            save_image(image, path, facts)
        report, curve = self.folder / f"{self.stem}.json", self.folder / f"{self.stem}-discrepancy.png"
        report.write_text(json.dumps(content | facts, indent=2) + "\n", encoding="utf-8")
        plot_discrepancy(generation.report, curve, title=str(facts.get("prompt", "")))
        return [*paths, report, curve]

    def write_trace(self, generation: Generation) -> Path:
        """Write what each rank did when; the path written. See `write_chrome_trace`."""
        write_chrome_trace(generation.report.spans, self.path)
        return self.path

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.stem}{ending}{self.suffix}"


def save_image(image: Image, path: Path, facts: dict[str, Any]) -> None:
    """Write an image that carries how it was made: in PNG text, or as JSON in the EXIF comment of other formats."""
    texts = {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()}
    texts["hybridiff"] = __version__
    if path.suffix.lower() == ".png":
        info = PngInfo()
        for name, text in texts.items():
            info.add_text(name, text)
        image.save(path, pnginfo=info)
    else:
        exif = Exif()
        exif.get_ifd(IFD.Exif)[Base.UserComment] = b"ASCII\0\0\0" + json.dumps(texts).encode()
        image.save(path, exif=exif)


@contextmanager
def progress_bar(is_shown: bool = True, smoothing: float = 0.0) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr that appears with the first step; yields what is to be told the work, how much is done, of what.

    Args:
        is_shown: Whether it appears at all.
        smoothing: How much the latest steps count for the remaining time; 0 has all of them count alike.
    """
    bar: Any = None

    def show(what: str, done: int, total: int) -> None:
        nonlocal bar
        bar = bar or tqdm(total=total, desc=what, disable=not is_shown, smoothing=smoothing)
        bar.set_description(what, refresh=False)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
