"""`hybridiff bench`: strategies side by side in one run."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..arguments import MOST_IMAGES, check_known
from ..config import ParallelConfig, parse_steps
from ..distributed.placement import Placement, is_under_torchrun
from ..errors import UsageError
from ..models.bench import BENCH, FULL
from .flags import choice, flag, number, setting
from .options import PROMPTS, WHAT, WHERE, CallOptions, Compile, command_line

if TYPE_CHECKING:
    from ..evaluation.timing.comparison import Comparison
    from ..evaluation.timing.contenders import Contender
    from ..models.folder import ModelFolder

HOW_OFTEN = "How to compare"
STRATEGIES = "NAME:KEY=VALUE:...@DEVICES, such as hybrid:fidelity=50 or hybrid@1; serial on one device comes first"
SIZE = "narrow for a core; full for a GPU: bench-sdxl, bench-sd3 and bench-qwen-image in their true shapes"
RESOLUTIONS = "sides of square images: speed-up against resolution"
LARGEST = "resolutions above are predicted from the costs of the others"
LIMIT = "take the first prompts only (default: 4, 1 with random weights)"
JSON = "the rows (default: bench.json in the output folder)"


@dataclass(frozen=True, kw_only=True)
class Bench(CallOptions):
    """Compare strategies side by side: speed, what it costs, and fidelity.

    All take turns on the same prompts and seeds. What saves work is also run on one device.
    """

    strategies: Annotated[str, flag(HOW_OFTEN, STRATEGIES, "A,B")] = "serial,cfg,hybrid,published"
    repeats: Annotated[int, number(HOW_OFTEN, "timed runs of each", least=1, most=1000)] = 5
    resolutions: Annotated[str | None, flag(HOW_OFTEN, RESOLUTIONS, "A,B")] = None
    largest: Annotated[int, number(HOW_OFTEN, LARGEST, "PIXELS", least=1)] = 1024
    prompts: Annotated[str | None, flag(WHAT, f"{PROMPTS}; embedded and bench models bring theirs", "FILE")] = None
    limit: Annotated[int | None, number(WHAT, LIMIT, least=1)] = None
    num_images: Annotated[int, number(WHAT, "images per prompt", least=1, most=MOST_IMAGES)] = 1
    size: Annotated[str, choice(WHAT, SIZE, ("narrow", "full"))] = "narrow"
    output: Annotated[str, flag(WHAT, "where tables and charts go", "FOLDER")] = "out/bench"
    json: Annotated[str | None, flag(WHAT, JSON, "FILE")] = None
    devices: Annotated[int, number(WHERE, "most ranks that work together", least=1, most=4096)] = 2
    compile: Compile = "none"
    timeout: Annotated[float, setting(WHERE, "timeout", "SECONDS")] = ParallelConfig.timeout

    def run(self) -> None:
        """Measure, write and tell."""
        from ..evaluation.timing.charts import write_charts
        from ..evaluation.timing.page import format_comparison, format_page
        from .output import Output

        folder, comparison, notes = self._prepare()
        target = Output.file(self.json or str(Path(self.output) / "bench.json"), ".json").path
        output = Output(Path(self.output).expanduser(), target.stem, ".md")
        output.prepare()
        content = self._measure(folder, comparison, notes)
        target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        charts = write_charts(content, output.folder, output.stem)
        output.path.write_text(format_page(content, [chart.name for chart in charts]), encoding="utf-8")
        print("\n  ".join([format_comparison(content) + "\n", *map(str, (target, output.path, *charts))]))

    def _prepare(self) -> "tuple[ModelFolder, Comparison, list[str]]":
        """The model, what is compared and what is to be said of it; what does not fit is refused here."""
        from ..evaluation.timing.comparison import Comparison
        from ..evaluation.timing.contenders import parse_contenders
        from ..evaluation.timing.recorded import recorded_contenders
        from ..evaluation.workload import check_guided, recommended, seeded, take_prompts, with_steps
        from ..models.bench import TRAINED
        from ..models.loading import find_model

        if is_under_torchrun():
            raise UsageError("bench starts ranks of its own: run it without torchrun")
        contenders = parse_contenders(self.strategies, self.devices)
        device = Placement.resolve(self.devices, self.device).device_type
        folder = find_model(self._model(), self.variant, self.model_config).for_device(device)
        given = recommended(folder.name) | self.call_arguments()
        folder.check_call(given)
        check_guided(given)
        if folder.makes != "images" or folder.pipeline_class is None:
            raise UsageError(f"bench compares images; {folder.name} makes {folder.makes}")
        check_known(folder.pipeline_class, given)
        call = with_steps(folder.pipeline_class, given) | {"num_images_per_prompt": self.num_images}
        steps = call["num_inference_steps"]
        self._check_schedules(contenders, steps)
        self._sizes(folder)
        is_random = folder.name in BENCH
        limit = self.limit or (1 if is_random else 4)
        prompts = seeded(take_prompts(TRAINED.get(folder.name, folder.name), self.prompts, "evaluation", (64,)))[:limit]
        notes = list(self._notes(contenders, device, folder))
        if is_random:
            contenders, recorded = recorded_contenders(contenders, folder.name, steps)
            notes += recorded
        return folder, Comparison(contenders, prompts, call, self.repeats, has_fidelity=not is_random), notes

    def _measure(self, folder: "ModelFolder", comparison: "Comparison", notes: list[str]) -> dict[str, Any]:
        """What the JSON file holds."""
        from ..evaluation.machine import describe_machine
        from ..evaluation.timing.page import missing_fidelities
        from ..evaluation.timing.resolutions import check_prediction, predict
        from ..evaluation.timing.turns import EngineSet
        from ..evaluation.workload import describe_prompts
        from .output import progress_bar

        device = Placement.resolve(self.devices, self.device).device_type
        measured, further = self._sizes(folder)
        sizes: Sequence[int | None] = measured or [None]
        total = len(sizes) * (self.repeats + 1) * (len(comparison.contenders) + 1)
        rows: list[dict[str, Any]] = []
        done = 0
        with self._engines(EngineSet, folder, comparison, device) as engines, progress_bar() as show:

            def tell(name: str, repeat: int) -> None:
                nonlocal done
                show(f"{name}, {'warm-up' if repeat < 0 else repeat + 1}", done, total)
                done += 1

            for size in sizes:
                sides = {} if size is None else {"height": size, "width": size}
                mark = {} if size is None else {"resolution": size}
                rows += [row | mark for row in comparison.measure(engines, tell, **sides)]
        predicted = predict(rows, further) if further else []
        said = [*notes, *missing_fidelities(rows), *(note for row in rows for note in row["notes"])]
        run = {"model": folder.name, "repeats": self.repeats, **comparison.call}
        return {
            "command": command_line(),
            "machine": describe_machine(device),
            "run": run | {"prompts": describe_prompts(comparison.prompts)},
            "rows": rows + predicted,
            "prediction": check_prediction(rows) if measured else [],
            "notes": list(dict.fromkeys(said)),
        }

    def _engines(self, kind: Any, folder: "ModelFolder", comparison: "Comparison", device: str) -> Any:
        # On a GPU a trace waits for the device at every turn, which would be timed too.
        ways = {
            one.name: (one.devices, replace(one.config, timeout=self.timeout, trace=device == "cpu"))
            for one in comparison.contenders
        }
        dtype = self.dtype or ("bfloat16" if folder.name.endswith(FULL) else None)
        return kind(
            folder,
            ways,
            device=device,
            dtype=dtype,
            timeout=self.timeout,
            **self.given("scheduler", "variant", "compile"),
        )

    def _model(self) -> str:
        if self.size != "full" or self.model.endswith(FULL):
            return self.model
        if self.model + FULL not in BENCH:
            having = ", ".join(name.removesuffix(FULL) for name in BENCH if name.endswith(FULL))
            raise UsageError(f"--size full is for {having}, got {self.model!r}")
        return self.model + FULL

    def _check_schedules(self, contenders: "Sequence[Contender]", steps: int) -> None:
        """Refuse full steps that lie beyond the last one; schedulers that the user names may have more evaluations."""
        from ..schedule.fixed import FixedPolicy

        for contender in contenders:
            if contender.config.full_steps is not None and self.scheduler is None:
                FixedPolicy(parse_steps(contender.config.full_steps), steps)

    def _sizes(self, folder: "ModelFolder") -> tuple[list[int], list[int]]:
        """The resolutions that are measured and those that are predicted; none where the user named none."""
        if self.resolutions is None:
            return [], []
        if self.height is not None or self.width is not None:
            raise UsageError("give either --resolutions or --height and --width")
        texts = [text.strip() for text in self.resolutions.split(",")]
        if not all(text.isdecimal() for text in texts):
            raise UsageError(f"--resolutions must look like 512,1024,2048, got {self.resolutions!r}")
        sides = sorted({int(text) for text in texts})
        for side in sides:
            folder.check_call({"height": side, "width": side})
        measured, further = (
            [side for side in sides if (side > self.largest) == is_above] for is_above in (False, True)
        )
        if len(measured) < (2 if further else 1):
            raise UsageError(
                f"predictions need two measured resolutions or more, got {len(measured)} of at most {self.largest}; "
                "give smaller ones, or --largest"
            )
        return measured, further

    def _notes(self, contenders: "Sequence[Contender]", device: str, folder: "ModelFolder") -> Iterator[str]:
        import os

        if self.compile != "none":
            yield f"Denoisers are compiled ({self.compile}) for all rows, serial too; graphs are made in the warm-up"
        if folder.name in BENCH:
            yield f"No fidelity: the weights of {folder.name} are random, and its images mean nothing"
        if any(one.config.strategy == "published" for one in contenders):
            yield "published needs an even number of devices, and has no row on one"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if device == "cpu" and cores < self.devices:
            yield f"{self.devices} ranks share {cores} cores: their times say nothing of {self.devices} devices"
        if device != "cpu":
            yield "Waiting and messages are traced on a CPU only"
