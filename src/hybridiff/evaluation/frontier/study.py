"""A measured frontier on disk: what was run, and the rows so far. Stopped at any time, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

from ...utils.files import write_whole
from ...utils.names import require_known
from ...utils.prompts import Prompt
from ..inspection.denoiser import measure_splits
from ..progress import Progress
from ..resumed import as_json, differing, read_parts, refuse_other
from ..simulation import Splits
from ..workload import seeded
from .generation import add_converged, generate_references, guided_schedules, simulate
from .grid import NAMES, TYPICAL, typical
from .kept import KeptImages
from .rows import FrontierRow, share_right
from .schedules import steps_as_text, typical_schedule
from .settings import Setting
from .settings_file import check_names
from .solvers import HYBRID

_PARTS: dict[str, Any] = {
    "run": dict,
    "splits": (dict, NoneType),
    "reference": (dict, NoneType),
    "typical": list,
    "rows": list,
}
"""What has to be in a file."""

IDENTITY = ("method", "label", "steps", "scheduler", "config", "thresholds")
"""What tells the row of one setting from that of another."""


@dataclass
class Study:
    """One file of measured settings.

    Attributes:
        path: The file.
        run: What all rows have in common: model, steps, scheduler, prompts.
        made_with: What does not matter to them: versions, the command.
        splits: Where the network is split, None until measured.
        reference: What was seen of the one-device images, None until generated.
        typical: The typical schedules found: full steps, the guided setting that they are typical of, and a digest of
            the prompts that they come from.
        rows: One per setting.
    """

    path: Path
    run: dict[str, Any]
    made_with: dict[str, Any] = field(default_factory=dict)
    splits: Splits | None = None
    reference: dict[str, Any] | None = None
    typical: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, run: dict[str, Any], made_with: dict[str, Any], fresh: bool = False) -> Study:
        """The study in a file, to go on with; an empty one where there is no file, or `fresh` says so.

        Raises:
            UsageError: the file is no study, or one of another run; says what differs.
        """
        run, made_with = as_json(run), as_json(made_with)
        if fresh or not path.exists():
            study = cls(path, run, made_with)
            if fresh:
                study.kept.clear()
            return study
        content = read_parts(path, "frontier", _PARTS)
        refuse_other(path, "another run", differing(run, content["run"]))
        return cls(path, run, made_with, *(content[name] for name in ("splits", "reference", "typical", "rows")))

    def has(self, description: dict[str, Any]) -> bool:
        """Whether the row of a setting (see `Setting.describe`) is there."""
        wanted = as_json(description)
        return any(all(row.get(name) == wanted.get(name) for name in IDENTITY) for row in self.rows)

    @property
    def converged_steps(self) -> int:
        """Number of steps of the converged images; 0 where there are none."""
        return int(self.run.get("converged_steps", 0))

    @property
    def kept(self) -> KeptImages:
        """Its converged images, beside the file."""
        facts = {name: value for name, value in self.run.items() if name != "prompts"}
        return KeptImages(self.path.with_suffix(".converged"), facts)

    def typical_of(self, description: dict[str, Any], prompts: Sequence[Prompt]) -> str | None:
        """The full steps of the schedule that is typical of a guided setting with some prompts; None until found."""
        wanted = {"guided": as_json(description), "prompts": _digest(prompts)}
        return next((found["full_steps"] for found in self.typical if found.items() >= wanted.items()), None)

    def add(self, description: dict[str, Any], row: FrontierRow) -> None:
        """Keep a row, in the place of one with the same name whose thresholds have changed since."""
        name = (description["method"], description["label"])
        kept = [old for old in self.rows if (old["method"], old["label"]) != name]
        self.rows = [*kept, as_json(description | row.to_dict())]
        self.save()

    def forget(self, methods: Iterable[str]) -> None:
        """Leave out the rows of some methods, so that they are measured again, typical schedules, too.

        Raises:
            UsageError: a method is unknown.
        """
        for method in (methods := set(methods)):
            require_known("method", method, dict.fromkeys([*NAMES, HYBRID, *(row["method"] for row in self.rows)]))
        self.rows = [row for row in self.rows if row["method"] not in methods]
        self.typical = [] if TYPICAL in methods else self.typical

    def add_typical(self, guided: dict[str, Any], prompts: Sequence[Prompt], full_steps: str) -> None:
        """Keep the full steps that are typical of a guided setting with some prompts."""
        self.typical.append({"guided": as_json(guided), "prompts": _digest(prompts), "full_steps": full_steps})
        self.save()

    def to_dict(self) -> dict[str, Any]:
        """The file's content."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "path"}

    def save(self) -> None:
        """Write the file, one line per row; never half of it."""
        content = self.to_dict()
        rows = ",\n".join(json.dumps(row) for row in content.pop("rows"))
        head = json.dumps(content, indent=1).removesuffix("\n}")
        write_whole(self.path, f'{head},\n "rows": [\n{rows}\n]\n}}\n')


def run_study(
    study: Study,
    pipe: Any,
    prompts: Sequence[Prompt],
    settings: Sequence[Setting],
    call: dict[str, Any],
    guided: Sequence[Setting] = (),
    guided_prompts: Sequence[Prompt] = (),
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    batch: int = 1,
) -> None:
    """Measure every setting whose row is not there yet; the file is written after each.

    Args:
        study: Where rows go.
        pipe: A stock pipeline.
        prompts: What is generated by every setting.
        settings: What is tried.
        call: Further arguments of the pipeline, with the number of steps.
        guided: Guided settings whose typical schedules are tried as fixed ones.
        guided_prompts: Other prompts, from which these schedules are taken.
        on_progress: Is told after every image what is generated, how many are, and of how many.
        batch: Prompts at once, where the schedule does not depend on them.

    Raises:
        UsageError: two settings have one name, or one does not fit the number of steps; nothing was generated.
    """
    check_names(settings, "what is compared")
    work = _Work(study, pipe, call, batch)
    unknown = [setting for setting in guided if study.typical_of(work.describe(setting), guided_prompts) is None]
    count = len(work.missing(settings)) + len(work.missing_typical(guided, guided_prompts)) + len(unknown)
    if count:
        references = 2 if study.converged_steps else 1
        images = len(unknown) * len(guided_prompts) + (references + count) * len(prompts)
        progress = Progress(on_progress, images)
        work.find_typical(unknown, guided_prompts, progress)
        work.measure([*work.missing(settings), *work.missing_typical(guided, guided_prompts)], prompts, progress)


def _digest(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(repr(seeded(prompts)).encode()).hexdigest()[:16]


class _Work:
    """What is left to do of a study."""

    def __init__(self, study: Study, pipe: Any, call: dict[str, Any], batch: int) -> None:
        self._study, self._pipe, self._call, self._batch = study, pipe, call, batch

    def describe(self, setting: Setting) -> dict[str, Any]:
        return setting.describe(self._pipe, self._call["num_inference_steps"])

    def missing(self, settings: Iterable[Setting]) -> list[Setting]:
        return [setting for setting in settings if not self._study.has(self.describe(setting))]

    def missing_typical(self, guided: Sequence[Setting], prompts: Sequence[Prompt]) -> list[Setting]:
        """Of the typical settings, as far as their schedules are known."""
        found = [(setting, self._study.typical_of(self.describe(setting), prompts)) for setting in guided]
        return self.missing(typical(setting, full) for setting, full in found if full is not None)

    def find_typical(self, guided: Sequence[Setting], prompts: Sequence[Prompt], progress: Progress) -> None:
        for one in guided:
            on_image = partial(progress.advance, "typical schedules")
            schedules = guided_schedules(self._pipe, prompts, one, self._call, on_image)
            self._study.add_typical(self.describe(one), prompts, steps_as_text(typical_schedule(schedules)))

    def measure(self, settings: Sequence[Setting], prompts: Sequence[Prompt], progress: Progress) -> None:
        study, pipe, call, batch = self._study, self._pipe, self._call, self._batch
        study.splits = study.splits or measure_splits(pipe, call)
        references = list(progress.over("one device", generate_references(pipe, prompts, call, batch)))
        right = share_right(reference.is_right for reference in references)
        study.reference = {"prompts": len(references), "right": right}
        study.save()
        if steps := study.converged_steps:
            converged = add_converged(pipe, references, call, steps, study.kept, batch)
            references = list(progress.over("converged", converged))

        def on_image(setting: Setting) -> None:
            progress.advance(setting.method)

        for row in simulate(pipe, references, settings, call, study.splits, on_image, batch):
            study.add(self.describe(row.setting), row)
