"""Pictures of several strategies in one folder: what is there need not be generated again."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ...config import ParallelConfig
from ...errors import UsageError
from ...schedule.calibration import Calibration
from ...utils.files import write_whole
from ...utils.prompts import Prompt
from ..resumed import as_json, differing, read_parts, refuse_other
from ..workload import describe_prompts

SETTINGS = "evaluation.json"
"""The file that says what the pictures of a folder have in common."""
_PARTS = {"run": dict, "strategies": dict, "prompts": list}
"""What has to be in it."""
_RECORD = "hybridiff"
"""The text chunk of a picture that says how it came by; so both are written at once."""


@dataclass(frozen=True)
class PictureRecord:
    """How one picture was generated.

    Attributes:
        prompt: Its text.
        seed: Of its noise.
        schedule: One letter per step: f(ull), p(ipelined), r(euse), c(ached), a(head).
        ideal_speedup: Of that schedule; None for the stock pipeline, and where it is not known.
        notes: Of the report.
    """

    prompt: str
    seed: int
    schedule: str
    ideal_speedup: float | None
    notes: list[str] = field(default_factory=list)


class Gallery:
    """A folder `STRATEGY/NUMBER.png`, with the settings of all of it in one file.

    Args:
        folder: Where it lies.
        prompts: One for each picture of a strategy, with its seed.
        configs: The strategies, by the names that the user has for them.
    """

    def __init__(self, folder: Path, prompts: Sequence[Prompt], configs: Mapping[str, ParallelConfig]) -> None:
        self.folder, self.prompts, self.configs = folder, list(prompts), dict(configs)

    @classmethod
    def open(
        cls,
        folder: Path,
        run: dict[str, Any],
        prompts: Sequence[Prompt],
        configs: Mapping[str, ParallelConfig],
        fresh: bool = False,
    ) -> Gallery:
        """The pictures in a folder, to go on with. There may be more strategies and more prompts than before.

        Args:
            folder: Made where it is missing.
            run: What decides all pictures, beside strategy, prompt and seed; plain data.
            prompts: One for each picture of a strategy, with its seed.
            configs: The strategies.
            fresh: Delete the pictures that are there.

        Raises:
            UsageError: the folder holds pictures that were generated otherwise; says what differs.
        """
        gallery = cls(folder, prompts, configs)
        if len({_file_name(name) for name in configs}) < len(configs):
            raise UsageError("two strategies would share a folder; name them so that they differ in letters or digits")
        strategies = {_file_name(name): _identity(config) for name, config in configs.items()}
        content = as_json({"run": run, "strategies": strategies, "prompts": describe_prompts(prompts)})
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            for path in gallery._ours():
                path.unlink()
        elif (folder / SETTINGS).exists():
            content = _joined(folder, read_parts(folder / SETTINGS, "evaluation", _PARTS), content)
        elif gallery._ours():
            raise UsageError(f"{folder} holds images, but no {SETTINGS}; use another --output, or --fresh")
        write_whole(folder / SETTINGS, json.dumps(content, indent=1) + "\n")
        return gallery

    def link(self, strategy: str, number: int) -> str:
        """Where a picture lies within the folder; numbers begin with 0."""
        return f"{_file_name(strategy)}/{number + 1:05}.png"

    def find(self, strategy: str, number: int) -> PictureRecord | None:
        """How a picture was generated; None where it is not there, or cannot be read."""
        return _record(self.folder / self.link(strategy, number))

    def records(self, strategy: str) -> list[PictureRecord]:
        """Those of all pictures of a strategy, which are there."""
        found = [self.find(strategy, number) for number in range(len(self.prompts))]
        return [record for record in found if record is not None]

    def missing(self, strategy: str) -> list[int]:
        """Numbers of the pictures that are to be generated."""
        return [number for number in range(len(self.prompts)) if self.find(strategy, number) is None]

    def add(self, strategy: str, number: int, image: Image.Image, record: PictureRecord) -> None:
        """Write a picture, without loss and never half of it."""
        path = self.folder / self.link(strategy, number)
        path.parent.mkdir(exist_ok=True)
        info, content = PngImagePlugin.PngInfo(), io.BytesIO()
        info.add_text(_RECORD, json.dumps(asdict(record)))
        image.convert("RGB").save(content, "png", pnginfo=info)
        write_whole(path, content.getvalue())

    def read(self, strategy: str, number: int) -> Image.Image:
        """A picture that is there."""
        with Image.open(self.folder / self.link(strategy, number)) as image:
            return image.convert("RGB")

    def pictures(self, strategy: str) -> Iterator[Image.Image]:
        """Those of a strategy, one after the other; they are there."""
        return (self.read(strategy, number) for number in range(len(self.prompts)))

    def _ours(self) -> list[Path]:
        """All pictures that were generated here, known by their record."""
        return [path for path in self.folder.glob("*/[0-9]*.png") if _record(path) is not None]


def _record(path: Path) -> PictureRecord | None:
    try:
        with Image.open(path) as image:
            return PictureRecord(**json.loads(image.info[_RECORD]))
    except (OSError, KeyError, ValueError, TypeError):
        return None


def _file_name(strategy: str) -> str:
    """The folder of a strategy: a name without what file systems and links reserve."""
    return re.sub(r"[^\w.=+,-]+", "-", strategy)


def _identity(config: ParallelConfig) -> dict[str, Any]:
    """What of a config decides pictures, a calibration by what it says."""
    defaults = ParallelConfig().to_dict() | {"strategy": None}
    found = {name: value for name, value in config.to_dict().items() if value != defaults[name] and name != "timeout"}
    if config.calibration is not None:
        content = repr(Calibration.read(Path(str(config.calibration)).expanduser()))
        found["calibration"] = hashlib.sha256(content.encode()).hexdigest()[:16]
    return found


def _joined(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The settings of what is there and what is to come, which may not contradict each other."""
    other = differing(old["run"], new["run"])
    for name in old["strategies"].keys() & new["strategies"].keys():
        other += [f"{entry} of {name}" for entry in differing(old["strategies"][name], new["strategies"][name])]
    if any(theirs != ours for theirs, ours in zip(old["prompts"], new["prompts"], strict=False)):
        other.append("prompts or seeds")
    refuse_other(folder, "other images", other)
    strategies = old["strategies"] | new["strategies"]
    return {"run": new["run"], "strategies": strategies, "prompts": max(old["prompts"], new["prompts"], key=len)}
