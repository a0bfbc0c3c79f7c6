"""The commands that measure a model on one device: `inspect`, `calibrate`, `simulate` and `study`."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..arguments import MOST_IMAGES, check_known
from ..distributed.placement import Placement
from ..models.tiny import EMBEDDED
from .flags import flag, number
from .options import PROMPTS, WHAT, CallOptions, command_line

BATCH = "prompts at once where the schedule does not depend on them"
METHODS = "methods to compare (default: all but solvers, or none with --settings)"
STUDY_METHODS = ("exact", "quality", "fidelity", "cached", "solvers")
CONVERGED = "compare with the image of so many steps, too, which takes longest; 0 leaves it out"
AGAIN = "methods whose rows are to be measured again; without it what is there is kept"
SETTINGS = "more settings: a JSON list of objects with method, label, config, and steps or scheduler"
TYPICAL_PROMPTS = "prompts for typical schedules, none of --prompts; the embedded models bring theirs"


@dataclass(frozen=True, kw_only=True)
class Inspect(CallOptions):
    """Show how a pipeline does guidance, what ranks share of it, where its denoiser is split, and what crosses.

    It runs a few steps on one device as two ranks would, with a short prompt and gray images where it takes some.
    """

    all: Annotated[bool, flag(WHAT, "list every split point, not only the chosen ones", "", "--all")] = False

    def run(self) -> None:
        """Measure and tell."""
        from ..evaluation.inspection.denoiser import format_inspection, inspect_denoiser
        from ..evaluation.inspection.sharing import format_sharing, inspect_sharing, plain_call
        from ..models.loading import find_model, load_pipeline

        device = Placement.resolve(1, self.device, simulate=True).device
        folder = find_model(self.model, self.variant, self.model_config)
        call = self.call_arguments()
        folder.check_call(call)
        pipe = load_pipeline(folder, device, self.dtype, **self.given("scheduler", "variant"))
        check_known(type(pipe), call)
        pipe.set_progress_bar_config(disable=True)
        found = inspect_sharing(pipe, **call)
        print(format_sharing(found))
        if not found.unsplit:
            print(f"\n{format_inspection(inspect_denoiser(pipe, **plain_call(pipe, call)), self.all)}")


@dataclass(frozen=True, kw_only=True)
class _ManyPrompts(CallOptions):
    prompts: Annotated[str | None, flag(WHAT, f"{PROMPTS}; the embedded models bring theirs", "FILE")] = None

    def load(self) -> Any:
        """The model and how it is called."""
        from ..evaluation.workload import Workload

        machine = self.given("device", "dtype", "scheduler", "variant", "model_config")
        workload = Workload.load(self.model, self.call_arguments(), **machine)
        check_known(type(workload.pipe), workload.call)
        return workload


@dataclass(frozen=True, kw_only=True)
class Calibrate(_ManyPrompts):
    """Measure a model's thresholds for hybrid, on one device."""

    step_kinds: Annotated[
        str, flag(WHAT, "what the steps between full ones may be; the fastest is chosen for each quality", "A,B")
    ] = "cached,reuse"
    output: Annotated[str, flag(WHAT, "what it holds for other schedulers and numbers of steps is kept", "FILE")] = (
        "calibration.json"
    )

    def run(self) -> None:
        """Measure, write and tell."""
        from ..evaluation.calibration.chart import calibration_figure
        from ..evaluation.calibration.thresholds import calibrate, check_candidates, check_order, format_expectations
        from ..evaluation.workload import take_prompts
        from ..schedule.calibration import FEWEST_PROMPTS, Calibration
        from .output import Output, progress_bar

        output = Output.file(self.output, ".json")
        kinds = _names(self.step_kinds)
        check_candidates(kinds)
        Calibration.open(output.path, self.model)  # refuses another model's file before hours of work
        prompts = take_prompts(self.model, self.prompts, "calibration", (16, 16))
        if len(prompts) < FEWEST_PROMPTS:
            few = f"warning: thresholds from {len(prompts)} prompts follow the prompts more than the model"
            print(f"{few}; give at least {FEWEST_PROMPTS}", file=sys.stderr)
        workload = self.load()
        check_order(workload.pipe.scheduler)
        with progress_bar() as show:
            entry = calibrate(workload.pipe, prompts, workload.call, kinds, show)
        # Opened again: another calibration may have been added to the file since.
        Calibration.open(output.path, self.model).with_entry(entry).write(output.path)
        words = "-".join(re.findall(r"\w+", f"{entry.scheduler} {entry.num_inference_steps}"))
        chart = output.path.with_name(f"{output.stem}-{words}.png")
        calibration_figure(self.model, entry).savefig(chart)
        print(f"{self.model}, {entry.scheduler}, {entry.num_inference_steps} steps, {entry.prompts} prompts\n")
        print(f"{format_expectations(entry)}\n")
        print(f"to use it: hybridiff generate --strategy hybrid --quality balanced --calibration {self.output} ...")
        print(f"  {output.path}\n  {chart}")


@dataclass(frozen=True, kw_only=True)
class Simulate(_ManyPrompts):
    """Compare fidelity and ideal speed-up of many settings, on one device."""

    limit: Annotated[int | None, number(WHAT, "take the first prompts only", least=1)] = None
    methods: Annotated[str | None, flag(WHAT, METHODS, "A,B")] = None
    settings: Annotated[str | None, flag(WHAT, SETTINGS, "FILE")] = None
    calibration: Annotated[str | None, flag(WHAT, "thresholds that hybridiff calibrate wrote", "FILE")] = None
    calibration_prompts: Annotated[str | None, flag(WHAT, TYPICAL_PROMPTS, "FILE")] = None
    converged_steps: Annotated[int, number(WHAT, CONVERGED, least=0, most=1000)] = 0
    batch: Annotated[int, number(WHAT, BATCH, least=1, most=MOST_IMAGES)] = 1
    output: Annotated[str, flag(WHAT, "the rows; charts and a page lie beside it", "FILE")] = "out/frontier.json"
    again: Annotated[str | None, flag(WHAT, AGAIN, "A,B")] = None
    fresh: Annotated[bool, flag(WHAT, "start over where the output is there already", "", "--fresh")] = False

    def run(self) -> None:
        """Measure, write and tell."""
        from ..evaluation.frontier.grid import TYPICAL, guided_models, list_settings
        from ..evaluation.frontier.settings_file import read_settings
        from ..evaluation.frontier.study import run_study
        from ..evaluation.workload import seeded, take_prompts
        from .output import Output, progress_bar

        target = Output.file(self.output, ".json").path
        methods = self._methods()
        own = [] if self.settings is None else read_settings(Path(self.settings).expanduser())
        prompts = seeded(take_prompts(self.model, self.prompts, "evaluation", (64,)))[: self.limit]
        guided, guided_prompts = [], []  # whose typical schedules are to be found first
        if TYPICAL in methods:
            guided = guided_models()
            guided_prompts = take_prompts(self.model, self.calibration_prompts, "calibration", (16,))
        workload = self.load()
        settings = [*list_settings(methods, workload.steps, workload.pipe.scheduler), *own]
        if self.calibration is not None:
            settings, guided = ([one.calibrated(self.calibration) for one in some] for some in (settings, guided))
        study = self._open(target, workload, prompts)
        with progress_bar() as show:
            run_study(study, workload.pipe, prompts, settings, workload.call, guided, guided_prompts, show, self.batch)
        _tell(study)

    def _open(self, target: Path, workload: Any, prompts: Any) -> Any:
        """The study in the output file, to go on with."""
        from ..evaluation.frontier.solvers import check_converged
        from ..evaluation.frontier.study import Study
        from ..evaluation.machine import versions
        from ..evaluation.workload import describe_prompts

        facts = workload.facts() | {"prompts": describe_prompts(prompts)}
        if self.converged_steps:
            check_converged(self.converged_steps, workload.steps, workload.pipe.scheduler)
            facts["converged_steps"] = self.converged_steps
        made_with = {"command": command_line(), **versions()}
        study = Study.open(target, run=facts, made_with=made_with, fresh=self.fresh)
        study.forget(_names(self.again) if self.again else [])
        return study

    def _methods(self) -> list[str]:
        """The methods to compare: those that were named, or the default ones."""
        from ..evaluation.frontier.grid import check_methods

        if self.methods is None:
            return self._default_methods()
        names = _names(self.methods)
        check_methods(names)
        return names

    def _default_methods(self) -> list[str]:
        from ..evaluation.frontier.grid import NAMES, SOLVERS, TYPICAL

        if self.settings is not None:
            return []
        has_prompts = self.model in EMBEDDED or self.calibration_prompts is not None
        return [name for name in NAMES if name != SOLVERS and (name != TYPICAL or has_prompts)]


@dataclass(frozen=True, kw_only=True)
class Study(Simulate):
    """Put a model to the test: frontier, promises and other solvers, with one page.

    It is simulate with other defaults, and goes on where it was stopped. SDXL or SD3 should take about an hour on one
    large GPU. Most of it are the converged images (fewer --converged-steps, or 0), the solvers (leave them out of
    --methods) and the prompts (--limit); --batch 4 saves some, where memory allows it.
    """

    limit: Annotated[int | None, number(WHAT, "take the first prompts only", least=1)] = 32
    methods: Annotated[str | None, flag(WHAT, f"methods to compare (default: {','.join(STUDY_METHODS)})", "A,B")] = None
    converged_steps: Annotated[int, number(WHAT, CONVERGED, least=0, most=1000)] = 500
    output: Annotated[str, flag(WHAT, "the rows; charts and a page lie beside it", "FILE")] = "out/study.json"

    def _default_methods(self) -> list[str]:
        return list(STUDY_METHODS)


def _tell(study: Any) -> None:
    """Write page and charts beside the file of a study, and tell."""
    from ..evaluation.frontier.chart import frontier_figure
    from ..evaluation.frontier.page import format_markdown, format_study
    from ..evaluation.frontier.solver_chart import solver_figure
    from ..evaluation.frontier.solvers import solver_lines

    path, content = study.path, study.to_dict()
    written = [path, path.with_suffix(".png"), path.with_suffix(".md")]
    frontier_figure(content).savefig(written[1])
    written[2].write_text(format_markdown(study), encoding="utf-8")
    if solver_lines(content):
        written.append(path.with_name(f"{path.stem}-solvers.png"))
        solver_figure(content).savefig(written[-1])
    print("\n  ".join([format_study(study), *map(str, written)]))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
