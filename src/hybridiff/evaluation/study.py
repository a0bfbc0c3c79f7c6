"""A measured frontier on disk: what was run, and the rows so far. Stopped at any time, it goes on where it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import ParallelConfig
from ..utils.files import write_whole
from ..utils.prompts import Prompt
from .frontier import (
    Cuts,
    FrontierRow,
    Reference,
    Setting,
    draw_references,
    guided_schedules,
    share_right,
    simulate,
    steps_as_text,
    typical_schedule,
)
from .grid import typical

IDENTITY = ("family", "label", "steps", "config", "thresholds")
"""What tells the row of one setting from that of another."""


@dataclass
class Study:
    """One file of measured settings.

    Attributes:
        path: The file.
        run: What all rows have in common: model, steps, scheduler, prompts.
        made_with: What does not matter to them: versions, the command.
        cuts: Where the network is cut, None until measured.
        reference: What was seen of the one-device pictures, None until drawn.
        typical: The typical schedules found: full steps, and the guided setting that they are typical of.
        rows: One a setting.
    """

    path: Path
    run: dict[str, Any]
    made_with: dict[str, Any] = field(default_factory=dict)
    cuts: Cuts | None = None
    reference: dict[str, Any] | None = None
    typical: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, run: dict[str, Any], made_with: dict[str, Any], fresh: bool = False) -> Study:
        """The study in a file, to go on with; an empty one where there is no file, or `fresh` says so.

        Raises:
            ValueError: the file is no study, or one of another run; says what differs.
        """
        run, made_with = _as_json(run), _as_json(made_with)
        if fresh or not path.exists():
            return cls(path, run, made_with)
        content = read_study(path)
        other = [name for name in run | content["run"] if run.get(name) != content["run"].get(name)]
        if other:
            raise ValueError(
                f"{path} holds another run, with other {', '.join(other)}; use another --output, or --fresh"
            )
        cuts = content["cuts"] and Cuts(**content["cuts"])
        return cls(path, run, made_with, cuts, content["reference"], content["typical"], content["rows"])

    def has(self, description: dict[str, Any]) -> bool:
        """Whether the row of a setting (see `Setting.describe`) is there."""
        wanted = _as_json(description)
        return any(all(row.get(name) == wanted[name] for name in IDENTITY) for row in self.rows)

    def typical_of(self, description: dict[str, Any]) -> str | None:
        """The full steps of the schedule that is typical of a guided setting; None until found."""
        wanted = _as_json(description)
        return next((found["full_steps"] for found in self.typical if found["guided"] == wanted), None)

    def add(self, description: dict[str, Any], row: FrontierRow) -> None:
        """Keep a row, in the place of one with the same name whose thresholds have changed since."""
        name = (description["family"], description["label"])
        kept = [old for old in self.rows if (old["family"], old["label"]) != name]
        self.rows = [*kept, _as_json(description | row.to_dict())]
        self.save()

    def to_dict(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "run": self.run,
            "made_with": self.made_with,
            "cuts": None if self.cuts is None else asdict(self.cuts),
            "reference": self.reference,
            "typical": self.typical,
            "rows": self.rows,
        }

    def save(self) -> None:
        """Write the file, a line a row; never half of it."""
        content = self.to_dict()
        rows = ",\n".join(json.dumps(row) for row in content.pop("rows"))
        head = json.dumps(content, indent=1).removesuffix("\n}")
        write_whole(self.path, f'{head},\n "rows": [\n{rows}\n]\n}}\n')


def read_study(path: Path) -> dict[str, Any]:
    """The content of a study's file.

    Raises:
        ValueError: it cannot be read, or is none; names it.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"run", "cuts", "reference", "typical", "rows"} - content.keys()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no frontier; give another --output, or --fresh to overwrite it") from error
    if missing:
        raise ValueError(f"{path} is no frontier: it lacks {', '.join(sorted(missing))}")
    malformed = _malformed(content)
    if malformed:
        raise ValueError(
            f"{path} is no frontier: its {', '.join(malformed)} cannot be used; give another --output, or --fresh to "
            "overwrite it"
        )
    return content


def _malformed(content: dict[str, Any]) -> list[str]:
    """The parts of a study's content that `Study.save` did not write."""
    cuts, reference = content["cuts"], content["reference"]
    is_right = {
        "run": isinstance(content["run"], dict),
        "cuts": cuts is None
        or (_has(cuts, "pipeline", "reuse") and len(cuts) == 2 and all(_is_cut(cut) for cut in cuts.values())),
        "reference": reference is None or isinstance(reference, dict),
        "typical": isinstance(content["typical"], list)
        and all(_has(found, "guided", "full_steps") for found in content["typical"]),
        "rows": isinstance(content["rows"], list) and all(_has(row, "family", "label") for row in content["rows"]),
    }
    return [name for name, right in is_right.items() if not right]


def _has(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and value.keys() >= set(names)


def _is_cut(value: Any) -> bool:
    return (
        _has(value, "cut", "outer", "inner")
        and _is_whole(value["cut"], 0)
        and all(isinstance(value[cost], (int, float)) for cost in ("outer", "inner"))
    )


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def read_settings(path: Path) -> list[Setting]:
    """Settings from a JSON file: a list of objects with family, label, config (of `ParallelConfig`) and maybe steps.

    Raises:
        ValueError: the file cannot be read, an entry is malformed, or two have one name; names it.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the settings {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"the settings {path} are malformed: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold a list of settings")
    settings = [_setting(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, start=1)]
    check_names(settings, str(path))
    return settings


def check_names(settings: Iterable[Setting], where: str) -> None:
    """Refuse two settings of one name: the row of one would take the place of the other's.

    Raises:
        ValueError: with the name.
    """
    counts = Counter((setting.family, setting.label) for setting in settings)
    for (family, label), count in counts.items():
        if count > 1:
            raise ValueError(
                f"{where}: {count} settings have family {family!r} and label {label!r}; give each a label of its own"
            )


def _setting(entry: Any, where: str) -> Setting:
    try:
        config = ParallelConfig(**{"strategy": "hybrid", **entry["config"], "simulate": True})
        steps = entry.get("steps")
        if steps is not None and not _is_whole(steps, 1):
            raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
        return Setting(str(entry["family"]), str(entry["label"]), config, steps)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{where}: family, label and config are needed, with fields of ParallelConfig ({error})"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


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
        prompts: What is drawn by every setting.
        settings: What is tried, as far as the network can be run that way.
        call: Further arguments of the pipeline, with the number of steps.
        guided: Guided settings whose typical schedules are tried as fixed ones.
        guided_prompts: Other prompts, from which these schedules are taken.
        on_progress: Is told after every picture what is drawn, how many are, and of how many.
        batch: Prompts drawn at once, where the schedule does not depend on them.

    Raises:
        ValueError: two settings have one name, or one does not fit the number of steps; nothing was drawn.
    """
    check_names(settings, "what is compared")
    work = _Work(study, pipe, call, on_progress, batch)
    unknown = [setting for setting in guided if study.typical_of(work.describe(setting)) is None]
    count = len(work.missing(settings)) + len(work.missing_typical(guided)) + len(unknown)
    if count:
        work.total = len(unknown) * len(guided_prompts) + (1 + count) * len(prompts)
        work.find_typical(unknown, guided_prompts)
        work.measure([*work.missing(settings), *work.missing_typical(guided)], prompts)


class _Work:
    """What is left to do of a study."""

    def __init__(self, study: Study, pipe: Any, call: dict[str, Any], on_progress: Any, batch: int) -> None:
        self._study, self._pipe, self._call, self._batch = study, pipe, call, batch
        self._on_progress = on_progress
        self._done = self.total = 0

    def describe(self, setting: Setting) -> dict[str, Any]:
        return setting.describe(self._pipe, self._call["num_inference_steps"])

    def missing(self, settings: Sequence[Setting]) -> list[Setting]:
        possible = [setting for setting in settings if setting.fits(self._pipe)]
        return [setting for setting in possible if not self._study.has(self.describe(setting))]

    def missing_typical(self, guided: Sequence[Setting]) -> list[Setting]:
        """Of the typical settings, as far as their schedules are known."""
        found = [(setting, self._study.typical_of(self.describe(setting))) for setting in guided]
        return self.missing([typical(setting, full) for setting, full in found if full is not None])

    def find_typical(self, guided: Sequence[Setting], prompts: Sequence[Prompt]) -> None:
        for setting in guided:
            schedules = guided_schedules(
                self._pipe, prompts, setting, self._call, lambda: self._tell("typical schedules")
            )
            full = steps_as_text(typical_schedule(schedules))
            self._study.typical.append({"guided": _as_json(self.describe(setting)), "full_steps": full})
            self._study.save()

    def measure(self, settings: Sequence[Setting], prompts: Sequence[Prompt]) -> None:
        study = self._study
        study.cuts = study.cuts or Cuts.measure(self._pipe, self._call)
        references = list(self._references(prompts))
        right = share_right(reference.is_right for reference in references)
        study.reference = {"prompts": len(references), "right": right}
        study.save()
        for row in simulate(
            self._pipe,
            references,
            settings,
            self._call,
            study.cuts,
            lambda setting: self._tell(setting.family),
            self._batch,
        ):
            study.add(self.describe(row.setting), row)

    def _references(self, prompts: Sequence[Prompt]) -> Iterator[Reference]:
        for reference in draw_references(self._pipe, prompts, self._call, self._batch):
            self._tell("one device")
            yield reference

    def _tell(self, what: str) -> None:
        self._done += 1
        self._on_progress(what, self._done, self.total)


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    content: dict[str, Any] = json.loads(json.dumps(value))
    return content
