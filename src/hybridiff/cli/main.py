"""The command `hybridiff`: the only place that prints."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import __version__
from ..config import ParallelConfig, check_ranks
from .options import (
    Parser,
    add_calibrate_options,
    add_generate_options,
    add_inspect_options,
    add_machine_options,
    add_simulate_options,
    call_arguments,
    parallel_config,
    parse_options,
)

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 2 for bad input (nothing was started), 1 for a failure while running, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = parse_options(_parser(), arguments)
        options.command(options)
    except ValueError as error:
        return _complain(error, arguments, BAD_INPUT)
    except (RuntimeError, OSError) as error:  # EngineError among them
        return _complain(error, arguments, FAILED)
    except KeyboardInterrupt:
        print("hybridiff: interrupted; all ranks have been ended", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> Parser:
    parser = Parser(prog="hybridiff", description="One guided diffusion picture on several devices.")
    parser.add_argument("--version", action="version", version=f"hybridiff {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    generate = commands.add_parser("generate", help="draw pictures for a prompt, or for many")
    add_generate_options(generate)
    generate.set_defaults(command=_generate)

    inspect = commands.add_parser("inspect", help="where a model's denoiser is cut, what the stages cost, what crosses")
    add_inspect_options(inspect)
    inspect.set_defaults(command=_inspect)

    calibrate = commands.add_parser("calibrate", help="measure a model's thresholds for hybrid, on one device")
    add_calibrate_options(calibrate)
    calibrate.set_defaults(command=_calibrate)

    simulate = commands.add_parser("simulate", help="fidelity against ideal speed-up of many settings, on one device")
    add_simulate_options(simulate)
    simulate.set_defaults(command=_simulate)

    demo = commands.add_parser("demo", help="the same scene with the embedded models on one device and on two")
    demo.add_argument("--output", default="out/demo", metavar="FOLDER", help="(default out/demo)")
    demo.add_argument("--num-inference-steps", type=int, default=50, metavar="N", help="(default 50)")
    demo.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs each (default 3)")
    add_machine_options(demo, device="cpu")
    demo.set_defaults(command=_demo)
    return parser


def _generate(options: argparse.Namespace) -> None:
    from ..evaluation.workload import recommended
    from ..launch.engine import Engine
    from ..models.loading import find_model
    from .output import Output

    prompts = _prompts(options)
    output = Output.parse(options.output)
    if options.model is None:
        raise ValueError("there is no model; give --model, such as --model tiny-sdxl")
    trace = None if options.trace is None else Output.file(options.trace, ".json")
    config = parallel_config(options)
    _check_machine(config, options.device)
    folder = find_model(options.model, options.variant)
    arguments = {**recommended(options.model), **call_arguments(options)}
    folder.check_call(arguments)
    output.prepare()
    engine = Engine(
        folder,
        config=config,
        device=options.device,
        dtype=options.dtype,
        scheduler=options.scheduler,
        variant=options.variant,
    )
    with engine:
        for number, prompt in enumerate(prompts, start=1):
            own = {} if prompt.negative_prompt is None else {"negative_prompt": prompt.negative_prompt}
            call = arguments | own
            with _ProgressBar(engine.is_leader, f"{number}/{len(prompts)}") as bar:
                generation = engine.generate(prompt.prompt, seed=prompt.seed, on_step=bar.show, **call)
            if engine.is_leader:
                facts = {"model": options.model, "prompt": prompt.prompt, "settings": _settings(options, engine, call)}
                paths = output.numbered(number, len(prompts)).write(generation, facts)
                if trace is not None:
                    paths.append(trace.numbered(number, len(prompts)).write_trace(generation))
                _tell(generation, paths)


def _check_machine(config: ParallelConfig, device: str) -> None:
    """Refuse ranks and devices that cannot be had, as Engine does, but before gigabytes of a model are downloaded.

    Raises:
        ValueError: with the numbers and the remedy.
    """
    from ..launch.engine import choose_device, is_under_torchrun

    joined = is_under_torchrun()
    ranks = config.devices or int(os.environ["WORLD_SIZE"])  # devices are left open under torchrun only
    check_ranks(config, ranks)
    processes = 1 if config.simulate else ranks
    choose_device(device, int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if joined else processes)


def _prompts(options: argparse.Namespace) -> list[Any]:
    """What to draw, each with a seed."""
    from ..utils.prompts import Prompt, read_prompts

    if (options.prompt is None) == (options.prompts is None):
        raise ValueError("give either --prompt TEXT or --prompts FILE")
    prompts = [Prompt(options.prompt)] if options.prompts is None else read_prompts(options.prompts)
    return [replace(prompt, seed=options.seed if prompt.seed is None else prompt.seed) for prompt in prompts]


def _settings(options: argparse.Namespace, engine: Any, call: dict[str, Any]) -> dict[str, Any]:
    """What the report says about how the picture was made; None stands for the model's own default."""
    machine = {"device": engine.device, "dtype": options.dtype, "scheduler": options.scheduler}
    return {**engine.config.to_dict(), **machine, **call}


def _tell(generation: Any, paths: Sequence[Any]) -> None:
    report = generation.report
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    devices = f"{report.devices} device{'s' * (report.devices != 1)}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.kinds.items())
    ideal = f", ideal speed-up {report.ideal_speedup:.2f}x" if report.ideal_speedup else ""
    print(
        f"{report.strategy} on {devices}: {len(report.steps)} steps ({kinds}) in {report.seconds:.2f} s{ideal}, "
        f"seed {generation.seed}"
    )
    for path in paths:
        print(f"  {path}")


def _inspect(options: argparse.Namespace) -> None:
    from ..evaluation.inspect import format_inspection, inspect_denoiser
    from ..launch.engine import choose_device
    from ..models.loading import find_model, load_pipeline

    device = choose_device(options.device, 1)
    folder = find_model(options.model, options.variant)
    size = {name: getattr(options, name) for name in ("height", "width") if getattr(options, name) is not None}
    folder.check_call(size)
    pipe = load_pipeline(folder.path, device, options.dtype, variant=options.variant)
    pipe.set_progress_bar_config(disable=True)
    print(format_inspection(inspect_denoiser(pipe, **size), options.all))


def _calibrate(options: argparse.Namespace) -> None:
    from ..evaluation.calibrate import calibrate, check_candidates, check_order, format_expectations
    from ..evaluation.charts import plot_calibration
    from ..evaluation.workload import Bench, take_prompts
    from ..schedule.calibration import FEWEST_PROMPTS, Calibration
    from .output import Output

    output = Output.file(options.output, ".json")
    candidates = [name.strip() for name in options.between.split(",")]
    check_candidates(candidates)
    Calibration.open(output.path, options.model)  # refuses another model's file before hours of work
    prompts = take_prompts(options.model, options.prompts, "calibration", (16, 16))
    if len(prompts) < FEWEST_PROMPTS:
        print(
            f"warning: thresholds from {len(prompts)} prompts follow the prompts more than the model; give at least "
            f"{FEWEST_PROMPTS}",
            file=sys.stderr,
        )
    bench = Bench.load(options.model, call_arguments(options), **_machine(options))
    check_order(bench.pipe.scheduler)
    with _ProgressBar(True, "pictures", smoothing=0.0) as bar:
        entry = calibrate(bench.pipe, prompts, bench.call, candidates, bar.show_what)
    # Opened again: another calibration may have been added to the file since.
    Calibration.open(output.path, options.model).with_entry(entry).write(output.path)
    picture = output.path.with_name(f"{output.stem}-{entry.scheduler}-{entry.num_inference_steps}.png")
    plot_calibration(options.model, entry, picture)
    print(
        f"{options.model}, {entry.scheduler}, {entry.num_inference_steps} steps, {entry.prompts} prompts\n\n"
        f"{format_expectations(entry)}\n\n"
        f"to use it: hybridiff generate --strategy hybrid --quality balanced --calibration {options.output} ...\n"
        f"  {output.path}\n  {picture}"
    )


def _simulate(options: argparse.Namespace) -> None:
    from ..evaluation.charts import plot_frontier
    from ..evaluation.frontier import seeded
    from ..evaluation.study import Study, read_settings, run_study
    from ..evaluation.tables import format_markdown, format_study
    from ..evaluation.workload import Bench, describe_prompts, take_prompts, versions
    from .output import Output

    target = Output.file(options.output, ".json").path
    families = _families(options)
    own = [] if options.settings is None else read_settings(_folder(options.settings))
    prompts = seeded(take_prompts(options.model, options.prompts, "evaluation", (64,)))[: options.limit]
    guided_prompts = _typical_prompts(options, families)
    bench = Bench.load(options.model, call_arguments(options), **_machine(options))
    settings, guided = _settings_to_compare(options, families, bench.steps, own)
    study = Study.open(
        target,
        run={**bench.facts(), "prompts": describe_prompts(prompts)},
        made_with={"command": "hybridiff " + " ".join(sys.argv[1:]), **versions()},
        fresh=options.fresh,
    )
    with _ProgressBar(True, "pictures", smoothing=0.0) as bar:
        run_study(
            study, bench.pipe, prompts, settings, bench.call, guided, guided_prompts, bar.show_what, options.batch
        )
    picture, page = target.with_suffix(".png"), target.with_suffix(".md")
    plot_frontier(study.to_dict(), picture)
    page.write_text(format_markdown(study), encoding="utf-8")
    print(format_study(study))
    print(f"  {target}\n  {picture}\n  {page}")


def _families(options: argparse.Namespace) -> list[str]:
    """The families to compare: those that were named, or all that can be."""
    from ..evaluation.grid import NAMES, TYPICAL, check_families
    from ..models.tiny import EMBEDDED

    if options.families is not None:
        names = [name.strip() for name in options.families.split(",")]
        check_families(names)
        return names
    if options.settings is not None:
        return []
    has_prompts = options.model in EMBEDDED or options.calibration_prompts is not None
    return [name for name in NAMES if name != TYPICAL or has_prompts]


def _typical_prompts(options: argparse.Namespace, families: Sequence[str]) -> list[Any]:
    """The prompts that typical schedules are taken from; none where none are asked for."""
    from ..evaluation.grid import TYPICAL
    from ..evaluation.workload import take_prompts

    if TYPICAL not in families:
        return []
    return take_prompts(options.model, options.calibration_prompts, "calibration", (16,))


def _settings_to_compare(
    options: argparse.Namespace, families: Sequence[str], steps: int, own: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """The settings, the user's own included, and the guided ones whose typical schedules are to be found first."""
    from ..evaluation.grid import TYPICAL, guided_models, list_settings

    settings = [*list_settings(families, steps), *own]
    guided = guided_models() if TYPICAL in families else []
    if options.calibration is None:
        return settings, guided
    settings, guided = ([setting.calibrated(options.calibration) for setting in some] for some in (settings, guided))
    return settings, guided


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("device", "dtype", "scheduler", "variant")}


def _demo(options: argparse.Namespace) -> None:
    from .demo import PROMPT, format_table, run_demo
    from .output import Output

    for name in ("num_inference_steps", "repeats"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    Output(_folder(options.output), "picture", ".png").prepare()
    print(f'"{PROMPT}", {options.num_inference_steps} steps, {options.device}')
    rows = list(
        run_demo(
            options.output,
            options.num_inference_steps,
            options.repeats,
            on_progress=lambda text: print(text, file=sys.stderr),
            device=options.device,
            dtype=options.dtype,
            timeout=options.timeout,
        )
    )
    print(f"\n{format_table(rows)}\n")
    print("pictures; the report (.json) and the discrepancy curve (-discrepancy.png) lie beside each:")
    for row in rows:
        print(f"  {row.path}")


def _folder(path: str) -> Any:
    from pathlib import Path

    return Path(path).expanduser()


class _ProgressBar:
    """A tqdm bar on stderr, on one rank; it appears with the first step.

    Args:
        is_shown: Whether it appears at all.
        label: What it counts.
        smoothing: How much the latest steps count for the remaining time; 0 has all of them count alike.
    """

    def __init__(self, is_shown: bool, label: str, smoothing: float = 0.3) -> None:
        self._is_shown, self._label, self._smoothing = is_shown, label, smoothing
        self._bar: Any = None

    def show(self, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._label, disable=not self._is_shown, smoothing=self._smoothing)
        self._bar.update(done - self._bar.n)

    def show_what(self, what: str, done: int, total: int) -> None:
        """Show what is being done as well."""
        self.show(done, total)
        self._bar.set_description(what, refresh=False)

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _complain(error: Exception, arguments: Sequence[str], code: int) -> int:
    if "--traceback" in arguments or os.environ.get("HYBRIDIFF_TRACEBACK"):
        traceback.print_exception(error)
    print(f"hybridiff: {error}", file=sys.stderr)
    return code
