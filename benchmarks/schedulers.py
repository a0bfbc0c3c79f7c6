"""Every scheduler of diffusers under a promise: `python -m benchmarks.schedulers`.

Writes what came of each image (.json) and a page with a row for each scheduler (.md), in the manner of
`docs/results/schedulers.json`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from hybridiff.denoiser.adapters.base import argument
from hybridiff.evaluation.frontier.generation import generate
from hybridiff.evaluation.frontier.solvers import promised
from hybridiff.evaluation.machine import versions
from hybridiff.evaluation.metrics import capped_psnr
from hybridiff.evaluation.simulation import SimulatedPipeline
from hybridiff.evaluation.workload import seeded, take_prompts
from hybridiff.models.loading import load_pipeline
from hybridiff.models.tiny import GUIDANCE
from hybridiff.numerics.sensitivity import measure_sensitivity
from hybridiff.report.speedup import mean_speedup
from hybridiff.utils.prompts import Prompt
from hybridiff.utils.tables import markdown_table

PROMISE = 45.0
"""In dB."""

_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


@dataclass(frozen=True)
class Case:
    """A scheduler on an embedded model that it suits.

    Attributes:
        scheduler: Name of the class, without "Scheduler".
        model: The model.
        steps: Number of steps as a user gives it; about 24 evaluations come of it, with PNDM 33.
        changes: What is not as in the model's own configuration.
        eta: How much noise the pipeline is asked to have added; by default none.
        needs: A package that the scheduler needs, and that is no dependency.
    """

    scheduler: str
    model: str = "tiny-sdxl"
    steps: int = 24
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    eta: float | None = None
    needs: str = ""

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.scheduler}, {self.model}" + (f", eta {self.eta:g}" if self.eta else "")

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        call = {"num_inference_steps": self.steps, "guidance_scale": GUIDANCE[self.model]}
        call |= {"max_sequence_length": 16} if self.model == "tiny-sd3" else {}
        return call | ({} if self.eta is None else {"eta": self.eta})


CASES = [
    *map(Case, ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "EulerDiscrete", "EulerAncestralDiscrete")),
    *map(Case, ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "SASolver")),
    *map(Case, ("LMSDiscrete", "PNDM", "LCM", "TCD")),
    Case("DDIM", eta=0.5),
    Case("TCD", eta=0.3),
    *(Case(name, steps=13) for name in ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")),
    Case("DPMSolverSDE", steps=13, needs="torchsde"),
    *(Case(f"FlowM{name}", "tiny-sd3") for name in ("atchEulerDiscrete", "apEulerDiscrete", "atchLCM")),
    Case("FlowMatchHeunDiscrete", "tiny-sd3", steps=13),
    Case("LTXEulerAncestralRF", "tiny-sd3"),
    *(Case(name, "tiny-sd3", changes=_FLOW) for name in ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep")),
]

_NOISE = "neither embedded model draws anything but noise with it, with cached steps or without"
_OTHER_CALLS = "its pipelines call it in another way"
_NOT_LATENT = "for discrete tokens, not for latents"
_INVERSE = "goes from images to noise"

NOT_TRIED = {
    "Amused": _NOT_LATENT,
    "BlockRefinement": _NOT_LATENT,
    "CMStochasticIterative": _NOISE,
    "CogVideoXDDIM": "for video; DDIM with another noise schedule",
    "CogVideoXDPM": _OTHER_CALLS,
    "ConsistencyDecoder": "for decoders, at most two steps",
    "CosineDPMSolverMultistep": _NOISE,
    "DDIMInverse": _INVERSE,
    "DDPMWuerstchen": _OTHER_CALLS,
    "DPMSolverMultistepInverse": _INVERSE,
    "DiscreteDDIM": _NOT_LATENT,
    "EDMDPMSolverMultistep": _NOISE,
    "EDMEuler": _NOISE,
    "EntropyBound": _NOT_LATENT,
    "Helios": "for video in stages",
    "HeliosDMD": "for video in stages",
    "IPNDM": _NOISE,
    "KarrasVe": _OTHER_CALLS,
    "MiniMaxH3": _NOISE,
    "Piflow": "for networks that predict a policy",
    "RFD4Proteina": "for proteins",
    "RePaint": "for inpainting by a pipeline that has no guidance",
    "SCM": "at most two steps with every pipeline but its own",
    "ScoreSdeVe": _OTHER_CALLS,
    "ScoreSdeVp": _OTHER_CALLS,
    "UnCLIP": _OTHER_CALLS,
    "VQDiffusion": _NOT_LATENT,
}
"""Schedulers that no guided pipeline of the supported families can use, or not with the embedded models, and why."""


def scheduler_names() -> set[str]:
    """The scheduler classes of the installed diffusers, without "Scheduler"."""
    from diffusers import schedulers

    return {name.removesuffix("Scheduler") for name in dir(schedulers) if name.endswith("Scheduler")}


def build(case: Case) -> Any:
    """The scheduler of a case, from the configuration of the model's own; it does not clip."""
    from diffusers import schedulers

    chosen = getattr(schedulers, f"{case.scheduler}Scheduler")
    can_clip = "clip_sample" in inspect.signature(chosen.__init__).parameters
    changes = case.changes | ({"clip_sample": False} if can_clip else {})
    return chosen.from_config(dict(_pipeline(case.model)[1].config), **changes)


def measure(case: Case, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Generate some prompts on one device and under the promise: a row, ready for JSON."""
    pipe = _pipeline(case.model)[0]
    pipe.scheduler, call = build(case), case.call
    references = [_generate(pipe, prompt, call) for prompt in prompts]
    config, images = promised(PROMISE).config, []
    with SimulatedPipeline(pipe, config) as simulated:
        for prompt, reference in zip(prompts, references, strict=True):
            pixels = _generate(simulated, prompt, call)
            fidelity = capped_psnr(pixels, reference)
            images.append(_image(fidelity, simulated))
    evaluations = len(pipe.scheduler.timesteps)
    fresh = build(case)
    fresh.set_timesteps(case.steps)
    return {
        "name": case.name,
        "needs": case.needs,
        "evaluations": evaluations,
        "order": fresh.order,
        "adds_noise": measure_sensitivity(fresh, evaluations, eta=argument(pipe, call, "eta")).is_stochastic,
        "images": images,
    }


def format_page(rows: Sequence[dict[str, Any]], command: str) -> str:
    """A row for each scheduler as a page of Markdown."""
    others = [("scheduler", "why"), *sorted(NOT_TRIED.items())]
    return "\n".join(
        [
            "# Schedulers under a promise\n",
            _EXPLANATION.format(promise=PROMISE, count=len(rows[0]["images"])),
            f"    {command}\n",
            markdown_table([_HEAD, *map(_cells, rows)], words=2),
            f"\nBy default these clip: {', '.join(_clipping())}.\n",
            "## Not tried\n",
            markdown_table(others, words=2) + "\n",
        ]
    )


_EXPLANATION = """\
`fidelity={promise:g}` with every scheduler of diffusers that suits an embedded model: {count} captions, about 24
evaluations (PNDM: 33), float32, CPU, no calibration. PSNR in dB against one device with the same scheduler and seed.
Schedulers of order 2 take two evaluations per step, and each may be full or cached. Where a scheduler clips
(`clip_sample`, `thresholding`) it is not linear, and all steps are full under a promise; here none clips.
Pipelines hand `eta` to schedulers that take it, DDIM and TCD among them, 0 unless they are asked for more: only then do
these add noise.
"""

_HEAD = (
    "scheduler, model",
    "the report says",
    "evaluations",
    "order",
    "noise",
    "full",
    "true mean",
    "worst",
    "estimated",
    "ideal speed-up",
)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    images = row["images"]
    full = sorted(image["schedule"].count("f") for image in images)
    return (
        row["name"] + (f" (needs {row['needs']})" if row["needs"] else ""),
        "; ".join(_notes(images)),
        str(row["evaluations"]),
        str(row["order"]),
        "yes" if row["adds_noise"] else "",
        str(full[0]) if full[0] == full[-1] else f"{full[0]}-{full[-1]}",
        f"{mean(image['true'] for image in images):.1f}",
        f"{min(image['true'] for image in images):.1f}",
        f"{mean(image['estimated'] for image in images):.1f}",
        f"{mean_speedup(image['ideal_speedup'] for image in images):.2f}x",
    )


def _notes(images: Sequence[dict[str, Any]]) -> list[str]:
    """What the reports say, and of how many images where that is not all of them."""
    counts = Counter(note for image in images for note in image["notes"])
    return [note if count == len(images) else f"{count} of {len(images)}: {note}" for note, count in counts.items()]


def _clipping() -> list[str]:
    """Schedulers that clip unless they are told not to."""
    from diffusers import schedulers

    found = []
    for name in sorted(scheduler_names()):
        parameter = inspect.signature(getattr(schedulers, f"{name}Scheduler").__init__).parameters.get("clip_sample")
        found += [name] if parameter is not None and parameter.default is True else []
    return found


@cache
def _pipeline(model: str) -> tuple[Any, Any]:
    """A pipeline, loaded once, and the scheduler that it came with."""
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe, pipe.scheduler


def _generate(pipe: Any, prompt: Prompt, call: dict[str, Any]) -> Any:
    """Pixels from 0 to 1; some pipelines leave their scheduler's noise to the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(prompt.seed or 0)
        return generate(pipe, [prompt], call)[0]


def _image(fidelity: float, simulated: SimulatedPipeline) -> dict[str, Any]:
    summary, estimated = simulated.summary, simulated.report.fidelity["estimated"]
    return {
        "true": round(fidelity, 1),
        "estimated": round(estimated, 1),
        "ideal_speedup": round(summary.ideal_speedup, 2),
        "schedule": summary.schedule,
        "notes": simulated.report.notes,
    }


def run(target: Path, prompts: Sequence[Prompt], tell: Callable[[str], None] = lambda name: None) -> None:
    """Measure all schedulers, and write rows and page.

    Args:
        target: The file of rows (.json); the page lies beside it.
        prompts: What is generated; their places in the list are their seeds unless they bring some.
        tell: Is called with the name of each case before it is measured.
    """
    rows = []
    for case in CASES:
        tell(case.name)
        rows.append(measure(case, seeded(prompts)))
    command = " ".join(["python -m benchmarks.schedulers", *sys.argv[1:]])
    study = {"promised": PROMISE, "made_with": {"command": command, **versions()}, "rows": rows}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")
    target.with_suffix(".md").write_text(format_page(rows, command), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedulers", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--limit", type=int, default=8, help="number of captions (default 8)")
    parser.add_argument(
        "--output", type=Path, default=Path("out/schedulers.json"), help="(default out/schedulers.json)"
    )
    options = parser.parse_args(arguments)
    prompts = take_prompts("tiny-sdxl", None, "evaluation", (options.limit,))
    run(options.output, prompts, _tell)


def _tell(name: str) -> None:
    sys.stderr.write(f"{name}\n")


if __name__ == "__main__":
    main()
