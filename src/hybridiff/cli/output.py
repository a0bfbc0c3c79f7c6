"""Where results go: images, films, sounds, and next to them the report and the discrepancy curve of their run."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import UsageError
from ..launch.protocol import Generation
from ..report.plots import image_sheet, plot_discrepancy
from ..report.timeline import write_chrome_trace
from .media import (
    LATENTS,
    STEMS,
    SUFFIXES,
    USUAL_FPS,
    USUAL_SAMPLING_RATE,
    as_picture,
    check_video_writer,
    save,
    save_image,
    save_latents,
)

CALLED = {"images": "an image", "frames": "a video", "audios": "a sound"}


@dataclass(frozen=True)
class Output:
    """The files of one generation: `image.png`, `image-1.png` ..., `image.json`, `image-discrepancy.png`.

    Several images come with a sheet.

    Attributes:
        folder: Where they go.
        stem: What their names begin with.
        suffix: Of what was made.
    """

    folder: Path
    stem: str
    suffix: str

    @staticmethod
    def parse(path: str, kind: str = "images", latents: bool = False) -> Output:
        """The output that a path names; a folder stands for `image.png` in it, or what else the kind is called.

        Args:
            path: What the user gave.
            kind: What is made: `images`, `frames` or `audios`.
            latents: What is written are latents, which are named like no other.

        Raises:
            UsageError: the suffix is not that of the kind.
        """
        target = Path(path).expanduser()
        suffixes, what = ((LATENTS,), "latents") if latents else (SUFFIXES[kind], CALLED[kind])
        if path.endswith("/") or target.is_dir() or not target.suffix:
            return Output(target, "latents" if latents else STEMS[kind], suffixes[0])
        if target.suffix.lower() not in suffixes:
            raise UsageError(f"cannot write {what} as {target.name!r}; use one of {', '.join(suffixes)}")
        if target.suffix.lower() == ".mp4":
            check_video_writer()
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

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.folder / f"{self.stem}.json"

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

    def write(self, generation: Generation, facts: dict[str, Any], fps: float = USUAL_FPS) -> list[Path]:
        """Write what was made, report and curve; the paths written, what was made first.

        Args:
            generation: What was made, and the report, whose parts get `saving`: all but the report's own file.
            facts: How, for the images and the report: model, prompt, settings.
            fps: Frames a second of films.
        """
        started = time.perf_counter()
        facts = {"seed": generation.seed, **facts}
        curve = self.folder / f"{self.stem}-discrepancy.png"
        names, paths = self._write_made(generation, facts, fps)
        plot_discrepancy(generation.report, curve, title=str(facts.get("prompt", "")))
        if generation.report.parts:
            generation.report.parts["saving"] = time.perf_counter() - started
        content = generation.report.to_dict() | names | facts
        self.report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return [*paths, self.report, curve]

    def _write_made(
        self, generation: Generation, facts: dict[str, Any], fps: float
    ) -> tuple[dict[str, Any], list[Path]]:
        """What was made: the names of the files by kind, and all paths written."""
        made: dict[str, Any] = generation.made()
        names: dict[str, Any] = {}
        paths: list[Path] = []
        if self.suffix.lower() == LATENTS:
            save_latents(made, self.path, facts)
            return {"latents": self.path.name}, [self.path]
        for kind, several in made.items():
            rate = fps if kind == "frames" else generation.sampling_rate or USUAL_SAMPLING_RATE
            written = self._of(kind)._write_each(several, facts, rate)
            names[kind] = [path.name for path in written]
            paths += written
        if len(made.get("images", ())) > 1:
            paths.append(self._path("-sheet"))
            save_image(image_sheet([as_picture(image) for image in made["images"]]), paths[-1], facts)
        return names, paths

    def _of(self, kind: str) -> Output:
        """The same for what is made beside, such as the sound of a film."""
        return self if self.suffix.lower() in SUFFIXES[kind] else replace(self, suffix=SUFFIXES[kind][0])

    def _write_each(self, made: Any, facts: dict[str, Any], rate: float) -> list[Path]:
        paths = [self._path(f"-{number}" if number else "") for number in range(len(made))]
        for one, path in zip(made, paths, strict=True):
            save(one, path, facts, rate)
        return paths

    def write_trace(self, generation: Generation) -> Path:
        """Write what each rank did when; the path written. See `write_chrome_trace`."""
        write_chrome_trace(generation.report.spans, self.path)
        return self.path

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.stem}{ending}{self.suffix}"


def check_suffix(path: str) -> None:
    """Refuse a file that nothing is written as, whatever the model makes.

    Raises:
        UsageError: with the suffixes that there are.
    """
    suffix = Path(path).suffix.lower()
    known = [*(suffix for suffixes in SUFFIXES.values() for suffix in suffixes), LATENTS]
    if suffix and suffix not in known and not (path.endswith("/") or Path(path).expanduser().is_dir()):
        raise UsageError(f"cannot write {Path(path).name!r}; use one of {', '.join(known)}")


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
