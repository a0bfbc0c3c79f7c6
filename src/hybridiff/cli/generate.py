"""`hybridiff generate`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..arguments import MOST_IMAGES, check_known
from ..config import OF_HYBRID, QUALITIES, STRATEGIES, ParallelConfig, PublishedSettings, check_ranks, require_strategy
from ..distributed.placement import Placement, is_under_torchrun
from ..errors import UsageError
from ..models.offload import OFFLOADS, check_offload
from ..utils.prompts import SEEDS, Prompt, read_prompts
from .flags import choice, flag, number, setting
from .options import (
    HELP,
    HOW,
    OWN,
    PROMPTS,
    PUBLISHED,
    SETTINGS,
    WHAT,
    WHERE,
    CallOptions,
    Compile,
    ConfigFile,
    apply_config,
    read_settings,
)

if TYPE_CHECKING:
    from ..launch.engine import Engine
    from ..launch.protocol import Generation
    from .output import Output

TOGETHER = "How the ranks work together"
STRATEGY = (
    f"{HELP['strategy']}, or one that another package offers (default: the one whose settings are given, else cfg, or "
    "serial on one device)"
)
QUALITY = HELP["quality"]
SET = "\n".join(["any other setting; repeatable:\n\n\b", *(f"{name}: {text}" for name, text in SETTINGS.items())])
SET += f"\n{OWN}NAME: {HELP['settings']}"
OUTPUT = "a file, or a folder for image.png, video.mp4 or audio.wav; also .jpg, .webp, .gif, .safetensors for latents"
IMAGE = "an image to start from, to edit, or to make a video of; repeatable"
CONTROLNET = "a folder or a hub id; repeatable; --arg controlnet_conditioning_scale=0.7 says how strongly it acts"
LORA = "a .safetensors file, a folder or a hub id, and how strongly it acts; repeatable"
FPS = "frames a second of a video (default: those of the pipeline, or 10)"
CONFIG = "these options from a JSON or TOML file, set and arg as tables; flags beat it"
OFFLOAD = "where networks wait that do not run: none (on the GPU), model or sequential (whole or by layer, on the CPU)"
PICTURES = ("image", "mask_image", "control_image")
TASK = "text-to-image"


def _known_strategy(_: str, name: object) -> None:
    require_strategy(name)


@dataclass(frozen=True, kw_only=True)
class Generate(CallOptions):
    """Generate images, videos or sounds for a prompt, or for many."""

    prompt: Annotated[str | None, flag(WHAT, "what the image shows", "TEXT")] = None
    prompts: Annotated[str | None, flag(WHAT, PROMPTS, "FILE")] = None
    image: Annotated[list[str] | None, flag(WHAT, IMAGE, "PATH")] = None
    mask_image: Annotated[str | None, flag(WHAT, "white where that image is to be painted anew", "PATH")] = None
    control_image: Annotated[list[str] | None, flag(WHAT, "what a ControlNet follows; repeatable", "PATH")] = None
    num_images: Annotated[int, number(WHAT, "images per prompt", least=1, most=MOST_IMAGES)] = 1
    seed: Annotated[int, number(WHAT, "of the noise", least=0, most=SEEDS[-1])] = 0
    output: Annotated[str, flag(WHAT, OUTPUT, "PATH")] = "out/"
    fps: Annotated[int | None, number(WHAT, FPS, least=1, most=1000)] = None
    trace: Annotated[str | None, flag(WHAT, f"{HELP['trace']}; for ui.perfetto.dev", "FILE.json")] = None
    config: Annotated[
        ConfigFile | None, flag(WHAT, CONFIG, "FILE", parser=ConfigFile, callback=apply_config, is_eager=True)
    ] = None
    lora: Annotated[list[str] | None, flag(HOW, LORA, "PATH_OR_ID[:SCALE]")] = None
    controlnet: Annotated[list[str] | None, flag(HOW, CONTROLNET, "PATH_OR_ID")] = None
    devices: Annotated[int | None, setting(TOGETHER, "devices", "N")] = None
    shards: Annotated[int | None, setting(TOGETHER, "shards", "N")] = None
    strategy: Annotated[str | None, flag(TOGETHER, STRATEGY, "NAME", check=_known_strategy, names=STRATEGIES)] = None
    fidelity: Annotated[float | None, setting(TOGETHER, "fidelity", "DB")] = None
    quality: Annotated[str | None, flag(TOGETHER, QUALITY, "NAME", names=tuple(QUALITIES))] = None
    calibration: Annotated[str | None, flag(TOGETHER, HELP["calibration"], "FILE")] = None
    set: Annotated[list[str] | None, flag(TOGETHER, SET, "NAME=VALUE", names=[f"{name}=" for name in SETTINGS])] = None
    offload: Annotated[str, choice(WHERE, OFFLOAD, OFFLOADS)] = "none"
    compile: Compile = "none"
    timeout: Annotated[float, setting(TOGETHER, "timeout", "SECONDS")] = ParallelConfig.timeout

    def run(self) -> None:
        """Generate, write and tell."""
        from ..evaluation.workload import recommended
        from ..launch.engine import Engine
        from ..models.loading import find_model
        from .output import Output, check_suffix
        from .pictures import choose_task, read_pictures
        from .target import Target

        prompts, config = self.all_prompts(), self.parallel_config()
        check_suffix(self.output)
        trace = None if self.trace is None else Output.file(self.trace, ".json")
        call = recommended(self.model) | self.call_arguments(self._table("arg"))
        # What cannot be had is refused before gigabytes of a model are downloaded.
        check_ranks(config, config.devices or Placement.resolve(device="cpu").world)
        device = Placement.resolve(config.devices, self.device, config.simulate).device_type
        check_offload(self.offload, device, self.compile)
        folder = find_model(self.model, self.variant, self.model_config)
        target = Target.choose(folder, self.output, call, self.fps, self.num_images)
        output, call = target.output, target.call
        _require_apart(trace, output)
        folder.check_call(call)
        given = self.given(*PICTURES)
        task = choose_task(folder, given, bool(self.controlnet))
        pipeline, images = read_pictures(folder, task, given, bool(self.controlnet))
        self._check_known(pipeline or (folder.pipeline_class if self._has_args and task == TASK else None), call)
        output.prepare()
        options = self.given("device", "dtype", "scheduler", "variant", "offload", "compile") | {"task": task}
        options |= {"loras": self.lora or (), "controlnets": self.controlnet or ()}
        with Engine(folder, config=config, **options) as engine:
            for number, prompt in enumerate(prompts, start=1):
                own = call | prompt.arguments
                words = {"prompt": prompt.prompt} if self._words else {}
                generation = _generate(engine, prompt.seed, words | own | images, f"{number}/{len(prompts)}")
                if engine.is_leader:
                    facts = self._facts(engine, prompt, own)
                    paths = output.numbered(number, len(prompts)).write(generation, facts, target.fps)
                    if trace is not None:
                        paths.append(trace.numbered(number, len(prompts)).write_trace(generation))
                    _tell(generation, paths)

    def all_prompts(self) -> list[Prompt]:
        """What to generate, each with a seed; a flag takes the place of either option of the config file.

        Raises:
            UsageError: there is none, or both a prompt and a file of prompts, or the file is malformed.
        """
        given = self._words
        if self.image and not given:  # some pipelines take no words
            given = {"prompt": ""}
        if len(given.keys() & {"prompt", "prompts"}) != 1:
            raise UsageError("give either --prompt TEXT or --prompts FILE")
        file = given.get("prompts")
        prompts = [Prompt(given["prompt"])] if file is None else read_prompts(Path(file).expanduser())
        return [replace(prompt, seed=self.seed if prompt.seed is None else prompt.seed) for prompt in prompts]

    @property
    def _words(self) -> dict[str, Any]:
        return self.given("prompt", "prompts") or (self.config.entries if self.config else {})

    def parallel_config(self) -> ParallelConfig:
        """What the options say about the ranks.

        Raises:
            UsageError: a setting is unknown, or its value does not fit.
        """
        settings = self.given("shards", "fidelity", "quality", "calibration") | read_settings(
            self.set, self._table("set"), self.strategy
        )
        published = {name.removeprefix("published."): settings.pop(name) for name in PUBLISHED if name in settings}
        own = {name.removeprefix(OWN): settings.pop(name) for name in list(settings) if name.startswith(OWN)}
        devices = self.devices
        if devices is None and not is_under_torchrun():
            devices = 1 if self.strategy == "serial" else 2
        # Who gives a setting means the strategy that has it; serial and cfg have none.
        implied = "published" if published else "hybrid" if settings.keys() & {*OF_HYBRID, "calibration"} else None
        return ParallelConfig(
            strategy=self.strategy or implied or ("serial" if devices == 1 else "cfg"),
            devices=devices,
            timeout=self.timeout,
            trace=self.trace is not None,
            published=PublishedSettings(**published),
            settings=own,
            **settings,
        )

    @property
    def _has_args(self) -> bool:
        return bool(self.arg or self._table("arg"))

    def _check_known(self, pipeline: type | None, call: dict[str, Any]) -> None:
        if pipeline is not None and self._has_args:
            check_known(pipeline, call)

    def _table(self, name: str) -> dict[str, Any]:
        return self.config.tables.get(name, {}) if self.config else {}

    def _facts(self, engine: "Engine", prompt: Prompt, call: dict[str, Any]) -> dict[str, Any]:
        """How an image was made; what is not told is the model's own."""
        facts = {"model": self.model, "prompt": prompt.prompt, "negative_prompt": call.get("negative_prompt")}
        settings = {
            **engine.config.to_dict(),
            "device": engine.device,
            **self.given("dtype", "scheduler", "variant", "model_config", "lora", "controlnet"),
        }
        settings |= {} if self.compile == "none" else {"compile": self.compile}
        settings |= {name: value for name, value in call.items() if name not in facts}
        return {name: fact for name, fact in facts.items() if fact is not None} | {"settings": settings}


def _require_apart(trace: "Output | None", output: "Output") -> None:
    if trace is not None and trace.path.resolve() == output.report.resolve():
        raise UsageError(f"--trace {trace.path} is the file of the report; give another one")


def _generate(engine: "Engine", seed: int | None, call: dict[str, Any], what: str) -> "Generation":
    from .output import progress_bar

    with progress_bar(engine.is_leader, smoothing=0.3) as show:
        return engine.generate(seed=seed, on_step=partial(show, what), **call)


def _tell(generation: "Generation", paths: Sequence[Path]) -> None:
    report = generation.report
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    devices = f"{report.devices} device{'s' * (report.devices != 1)}"
    if report.partition is not None and report.partition.shards > 1:
        devices += f", {report.partition.shards} an image"
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.kinds.items())
    ideal = f", ideal speed-up {report.ideal_speedup:.2f}x" if report.ideal_speedup else ""
    print(
        f"{report.strategy} on {devices}: {len(report.steps)} steps ({kinds}) in {report.seconds:.2f} s{ideal}, "
        f"seed {generation.seed}"
    )
    if report.parts:
        shares = (f"{part} {seconds:.2f} s ({report.shares[part]:.0%})" for part, seconds in report.parts.items())
        print(f"of {sum(report.parts.values()):.2f} s: {', '.join(shares)}")
    if any(report.peak_memory):
        memory = ", ".join(f"{most / 2**30:.2f}" for most in report.peak_memory)
        print(f"memory at most: {memory} GiB{' (a rank each)' * (len(report.peak_memory) > 1)}")
    if report.fidelity:
        promised, estimated = report.fidelity["promised"], report.fidelity["estimated"]
        print(f"fidelity: {promised:g} dB promised, {estimated:.1f} dB estimated for the worst image")
    for path in paths:
        print(f"  {path}")
