"""A promised fidelity: what `hybrid` makes of it, held against what can be told from its predictions by hand."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, RunReport, parallelize
from hybridiff.denoiser.decoder import decoder_gain
from hybridiff.evaluation.metrics import psnr
from hybridiff.models import tiny
from hybridiff.models.loading import load_pipeline
from hybridiff.models.tiny.scenes import captions
from hybridiff.numerics.estimate import FADING, PAIR, REACTION
from hybridiff.numerics.hindsight import Hindsight
from hybridiff.numerics.sensitivity import measure_sensitivity
from hybridiff.schedule.calibration import Calibration
from hybridiff.schedule.presets import GuidedSettings
from support.jobs import Generated, generate_parallel
from support.oracles import generated_one_part_after_another, relative_difference
from support.pipelines import build, call_arguments, generate
from support.promised import PromisedByHand, Shown
from support.schedules import callback_at, guidance_except, guidance_until
from support.splines import spline_through

STEPS = {"num_inference_steps": 34}
TWO = {"num_images_per_prompt": 2}


def simulated(name: str, fidelity: float, scheduler: str | None = None, **changes: Any) -> Generated:
    return generate_parallel(
        name, STEPS | changes, scheduler=scheduler, simulate=True, strategy="hybrid", fidelity=fidelity
    )[0]


def kinds(report: dict[str, Any]) -> str:
    """One letter a step."""
    return "".join(step["kind"][0] for step in report["steps"])


def full_steps_of(report: dict[str, Any]) -> list[int]:
    return [step["index"] for step in report["steps"] if step["kind"] == "full"]


class Recorded:
    """A run of one device, whose network evaluates both branches at once: what it predicted in each full step.

    What the displaced sample added to its predictions is taken out; `test_cached_oracle` has that by hand.
    """

    def __init__(self, name: str, scheduler: str | None, fidelity: float, **changes: Any) -> None:
        pipe, self.seen = build(name, scheduler), list[torch.Tensor]()

        @functools.wraps(Hindsight.look_back)
        def look_back(*args: Any, **kwargs: Any) -> torch.Tensor:
            undisturbed = Hindsight.look_back(*args, **kwargs)
            self.seen.append(undisturbed.double())
            return undisturbed

        config = ParallelConfig("hybrid", devices=1, simulate=True, fidelity=fidelity)
        recording = type("Recording", (Hindsight,), {"look_back": look_back})
        with pytest.MonkeyPatch.context() as patch, parallelize(pipe, config) as parallel:
            patch.setattr("hybridiff.strategies.steps.making.Hindsight", recording)
            self.scale = call_arguments(name)["guidance_scale"]
            generate(parallel, name, **STEPS, **changes)
            assert parallel.report is not None
            self.report: RunReport = parallel.report
        steps = len(self.report.steps)
        self.full = [step.index for step in self.report.steps if step.kind.value == "full"]
        assert len(self.full) == len(self.seen)
        pipe.scheduler.set_timesteps(STEPS["num_inference_steps"])
        self.final = measure_sensitivity(pipe.scheduler, steps).on_sample[-1]
        self.gain = decoder_gain(pipe)
        self.longest = GuidedSettings.choose(ParallelConfig("hybrid"), None, STEPS["num_inference_steps"]).longest

    def guided(self, prediction: torch.Tensor) -> torch.Tensor:
        unconditional, conditional = prediction.chunk(2)
        return (1 - self.scale) * unconditional + self.scale * conditional

    def rms(self, guided: torch.Tensor) -> list[float]:
        return [float(image.norm() / image.numel() ** 0.5) for image in guided]

    def shown(self) -> list[Shown]:
        """What each full step shows: how fast predictions change, and what the gaps so far left wrong."""
        guided = [self.guided(prediction) for prediction in self.seen]
        shown: list[Shown] = [(self.full[0], [], [])]
        squares = [0.0] * len(guided[0])
        for place, (before, step) in enumerate(itertools.pairwise(self.full), start=1):
            speeds = [one / (step - before) for one in self.rms(guided[place] - guided[place - 1])]
            if step > before + 1:
                left = self.left(guided, place)
                squares = [square + one for square, one in zip(squares, left, strict=True)]
            shown.append((step, speeds, [square**0.5 for square in squares]))
        return shown

    def left(self, guided: list[torch.Tensor], place: int) -> list[float]:
        """Squared, what the cached steps before a full one leave: guidance and curves in the other order."""
        cached = range(self.full[place - 1] + 1, self.full[place])
        six, three = (
            partial(spline_through, self.full[first : place + 1], guided[first : place + 1])
            for first in (max(0, place - 5), max(0, place - 2))
        )
        corrected = self.rms(sum(self.final[step] * (six(step) - guided[place - 1]) for step in cached))
        pair = self.rms(sum(self.final[step] * (six(step) - three(step)) for step in cached))
        decibels = FADING * (1 - (self.full[place] + 1) / len(self.final))
        squares = zip(corrected, pair, strict=True)
        return [((REACTION * c) ** 2 + (PAIR * p) ** 2) * 10 ** (-decibels / 10) for c, p in squares]


RUNS = [
    pytest.param("sd15", "ddim", 55, {}, id="DDIM"),
    pytest.param("sd15", "ddim", 60, TWO, id="DDIM, two images"),
    pytest.param("sdxl two levels", "euler", 50, {}, id="Euler"),
    pytest.param("sdxl two levels", "euler", 45, TWO, id="Euler, two images"),
    pytest.param("sd3", None, 70, {}, id="flow"),
    pytest.param("sd3", None, 65, TWO, id="flow, two images"),
    pytest.param("sd15", "unipc", 52, {}, id="UniPC"),
    pytest.param("sd15", "dpmsolver++", 48, {}, id="DPM-Solver++"),
    pytest.param("sd3 img2img", None, 70, {}, id="image to image"),
]


@pytest.mark.parametrize(("name", "scheduler", "fidelity", "changes"), RUNS)
def test_estimate_and_schedule_by_hand(
    name: str, scheduler: str | None, fidelity: float, changes: dict[str, Any]
) -> None:
    run = Recorded(name, scheduler, fidelity, **changes)
    shown = run.shown()
    estimated = -20 * torch.tensor(max(shown[-1][2])).mul(run.gain).log10().item()
    assert run.report.fidelity == {"promised": fidelity, "estimated": pytest.approx(estimated, abs=0.01)}
    told = [step.estimated for step in run.report.steps if step.estimated is not None]
    assert told == sorted(told, reverse=True), "gap by gap"
    assert (len(told), told[-1]) == (len(run.full), run.report.fidelity["estimated"])
    assert run.report.fidelity["estimated"] >= fidelity - 3, "no gap leaves much more than was expected"
    by_hand = PromisedByHand(10 ** (-fidelity / 20) / run.gain, run.final, run.longest)
    followed = [by_hand.next_full(shown[: place + 1]) for place in range(len(shown) - 1)]
    assert run.full[0] == 0
    assert followed == run.full[1:]
    gaps = [after - before for before, after in itertools.pairwise(run.full)]
    assert max(gaps) > 1
    assert len(run.full) < len(run.report.steps)


@pytest.mark.parametrize(("name", "scheduler", "fidelity", "changes"), RUNS)
def test_the_image_is_that_of_the_same_schedule_given(
    name: str, scheduler: str | None, fidelity: float, changes: dict[str, Any]
) -> None:
    generated = simulated(name, fidelity, scheduler, **changes)
    full = full_steps_of(generated.report)
    config = {"strategy": "hybrid", "step_kind": "cached", "full_steps": ",".join(map(str, full))}
    given = generate_parallel(name, STEPS | changes, scheduler=scheduler, simulate=True, **config)[0]
    assert torch.equal(generated.latents, given.latents)
    assert kinds(generated.report) == kinds(given.report)
    assert given.report["fidelity"] == {}
    assert generated.report["notes"] == []


@pytest.mark.parametrize(("name", "scheduler"), [("sd3", None), ("sd15", "ddim"), ("sdxl two levels", "euler")])
def test_the_most_that_can_be_promised_is_cfg(name: str, scheduler: str | None) -> None:
    few = {"num_inference_steps": 10}
    generated = simulated(name, 100, scheduler, **few)
    assert torch.equal(generated.latents, generated_one_part_after_another(name, scheduler=scheduler, **few))
    assert kinds(generated.report) == "f" * 10
    assert generated.report["fidelity"] == {"promised": 100, "estimated": 100.0}
    assert (generated.report["tau1"], generated.report["tau2"]) == (None, None)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runs_too_short_for_a_gap(steps: int) -> None:
    generated = simulated("sd3", 10, num_inference_steps=steps)
    assert kinds(generated.report) == "f" * steps
    assert generated.report["fidelity"] == {"promised": 10, "estimated": 100.0}


@pytest.mark.parametrize(("name", "scheduler"), [("sd3", None), ("sd15", "ddim"), ("sdxl two levels", "euler")])
def test_more_is_promised_for_more_full_steps(name: str, scheduler: str | None) -> None:
    runs = [simulated(name, fidelity, scheduler).report for fidelity in (35, 50, 65, 80)]
    counts = [len(full_steps_of(report)) for report in runs]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    estimates = [report["fidelity"]["estimated"] for report in runs]
    assert estimates == sorted(estimates)


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_a_scheduler_that_is_not_linear_has_full_steps_only(option: str) -> None:
    pipe = build("sd15", "ddim")
    pipe.scheduler.register_to_config(**{option: True}, sample_max_value=50.0)
    with parallelize(pipe, ParallelConfig("hybrid", simulate=True, fidelity=30)) as parallel:
        generate(parallel, "sd15", num_inference_steps=8)
        report = parallel.report.to_dict()
    assert kinds(report) == "f" * 8
    assert report["fidelity"] == {"promised": 30, "estimated": 100.0}
    (note,) = report["notes"]
    assert note == (
        f"DDIMScheduler is not linear as it is configured ({option}): errors cannot be told beforehand, and full steps "
        "alone keep the promise; a tolerance can be set by hand"
    )


@pytest.mark.parametrize(("eta", "notes"), [(0.0, 0), (0.5, 1)])
def test_noise_that_the_call_asks_for_is_known(eta: float, notes: int) -> None:
    """DDIM adds it as the pipeline's argument says; what was predicted early then counts as the network has seen it."""
    generated = simulated("sd15", 45, "ddim", eta=eta)
    assert [note.split(":")[0] for note in generated.report["notes"]] == ["DDIMScheduler adds noise"] * notes


def test_a_scheduler_of_second_order_keeps_a_promise_with_cached_steps() -> None:
    few = {"num_inference_steps": 13}
    generated = simulated("sd15", 30, "heun", **few)
    assert generated.report["notes"] == []
    assert "c" in kinds(generated.report)
    assert 30 <= generated.report["fidelity"]["estimated"] < 100
    more = simulated("sd15", 70, "heun", **few)
    expected = generated_one_part_after_another("sd15", scheduler="heun", **few)
    assert more.report["fidelity"]["estimated"] > generated.report["fidelity"]["estimated"]
    assert relative_difference(more.latents, expected) < relative_difference(generated.latents, expected)


def test_without_guidance_a_promise_is_kept_all_the_same() -> None:
    generated = simulated("sd3", 30, guidance_scale=1.0, num_inference_steps=12)
    assert "c" in kinds(generated.report)
    assert generated.report["fidelity"]["promised"] == 30
    assert 30 <= generated.report["fidelity"]["estimated"] < 100


@pytest.mark.parametrize("last", [1, 6, 7, 8, 20])
@pytest.mark.parametrize("images", [1, 2])
def test_guidance_that_ends(last: int, images: int) -> None:
    """Until then the schedule is that of a guided run; then all is full."""
    whole = simulated("sd15", 50, "ddim", num_images_per_prompt=images)
    generated = simulated("sd15", 50, "ddim", num_images_per_prompt=images, **guidance_until("sd15", last))
    schedule = kinds(generated.report)
    assert schedule[: last + 1] == kinds(whole.report)[: last + 1]
    assert set(schedule[last + 1 :]) == {"f"}
    assert torch.isfinite(generated.latents).all()
    assert 50 < generated.report["fidelity"]["estimated"] <= 100
    if last >= 20:
        assert (generated.report["tau1"], generated.report["tau2"]) == (whole.report["tau1"], last)


@pytest.mark.parametrize("off", [{1, 2, 3}, {10, 11}, {9, 10, 11, 12}])
def test_guidance_that_comes_and_goes(off: set[int]) -> None:
    """Steps without it are full; after it was off in the parallel phase all are."""
    generated = simulated("sd3", 50, **guidance_except("sd3", off))
    schedule = kinds(generated.report)
    assert {schedule[step] for step in off} == {"f"}
    assert torch.isfinite(generated.latents).all()
    if min(off) > 3:
        assert set(schedule[min(off) :]) == {"f"}
        assert generated.report["tau2"] == min(off) - 1
        assert {step["phase"] for step in generated.report["steps"][min(off) :]} == {"connect"}
    else:
        assert "c" in schedule


def test_steps_of_skip_layer_guidance_are_full() -> None:
    layers = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.6}
    generated = simulated("sd3", 40, **layers)
    extra = [step["index"] for step in generated.report["steps"] if step.get("extra_evaluations")]
    assert extra
    assert set(extra) < set(full_steps_of(generated.report))
    assert generated.report["fidelity"]["estimated"] > 40


def test_the_same_image_twice_has_the_schedule_of_one() -> None:
    one = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(8))
    alone = simulated("sd15", 55, "ddim", latents=one.clone())
    twice = simulated("sd15", 55, "ddim", latents=one.repeat(2, 1, 1, 1), num_images_per_prompt=2)
    assert kinds(alone.report) == kinds(twice.report)
    assert twice.report["fidelity"]["estimated"] == pytest.approx(alone.report["fidelity"]["estimated"], abs=0.01)


@pytest.mark.parametrize("seeds", [(8, 9), (9, 8), (3, 4)])
def test_the_worst_image_of_a_batch_counts(seeds: tuple[int, int]) -> None:
    """A batch has every full step's room from all its images, so that none has a gap which it would not have alone."""
    noise = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    noise[0] = noise[0] * 0.1
    together = simulated("sd15", 55, "ddim", latents=torch.cat(noise), num_images_per_prompt=2)
    alone = [simulated("sd15", 55, "ddim", latents=one) for one in noise]
    assert kinds(together.report) in [kinds(one.report) for one in alone]
    worst = min(one.report["fidelity"]["estimated"] for one in alone if kinds(one.report) == kinds(together.report))
    assert together.report["fidelity"]["estimated"] == pytest.approx(worst, abs=0.05)


def test_one_run_leaves_nothing_for_the_next() -> None:
    changes: list[dict[str, Any]] = [STEPS, {**STEPS, **TWO}, {"num_inference_steps": 20, "guidance_scale": 2.0}]
    with parallelize(build("sd15"), ParallelConfig("hybrid", simulate=True, fidelity=55)) as parallel:
        together = []
        for change in [*changes, changes[0]]:
            latents = generate(parallel, "sd15", **change)
            assert parallel.report is not None
            together.append((latents, parallel.report.fidelity, kinds(parallel.report.to_dict())))
    assert together[0][1:] == together[-1][1:]
    assert torch.equal(together[0][0], together[-1][0])
    for (latents, fidelity, schedule), change in zip(together, changes, strict=False):
        fresh = generate_parallel("sd15", change, simulate=True, strategy="hybrid", fidelity=55)[0]
        assert torch.equal(latents, fresh.latents)
        assert (fidelity, schedule) == (fresh.report["fidelity"], kinds(fresh.report))


def test_an_interrupted_run_does_not_matter_to_the_next() -> None:
    with parallelize(build("sd15"), ParallelConfig("hybrid", simulate=True, fidelity=55)) as parallel:
        stop = callback_at(9, lambda pipe: setattr(pipe, "_interrupt", True))
        generate(parallel, "sd15", **STEPS, callback_on_step_end=stop)
        latents = generate(parallel, "sd15", **STEPS)
    assert torch.equal(latents, simulated("sd15", 55).latents)


def test_time_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = simulated("sd15", 55)
    lies = itertools.cycle([0.0, 7.0, 7.0, 1e4, 3.0])
    tell: Callable[[], float] = time.perf_counter
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: tell() + next(lies))
        falsified = simulated("sd15", 55)
    assert torch.equal(honest.latents, falsified.latents)
    assert kinds(honest.report) == kinds(falsified.report)
    assert honest.report["fidelity"] == falsified.report["fidelity"]


@pytest.mark.parametrize("ranks", [1, 4])
def test_other_numbers_of_ranks_promise_the_same_to_rounding(ranks: int) -> None:
    config = {"strategy": "hybrid", "fidelity": 60, "simulate": True}
    two = generate_parallel("sd15", STEPS | TWO, **config)[0]
    other = generate_parallel("sd15", STEPS | TWO, devices=ranks, **config)[0]
    assert kinds(other.report) == kinds(two.report)
    assert other.report["fidelity"]["estimated"] == pytest.approx(two.report["fidelity"]["estimated"], abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    generated = generate_parallel("sd3", STEPS, dtype=dtype, simulate=True, strategy="hybrid", fidelity=45)[0]
    assert generated.latents.dtype == dtype
    assert "c" in kinds(generated.report)
    assert 45 < generated.report["fidelity"]["estimated"] < 100


@pytest.mark.parametrize("name", ["sd3", "sd15"])
def test_no_quality_is_balanced(name: str) -> None:
    runs = [generate_parallel(name, STEPS, simulate=True, strategy="hybrid", **given)[0] for given in QUALITIES]
    for other in runs[1:]:
        assert torch.equal(runs[0].latents, other.latents)
        assert runs[0].report["notes"] == other.report["notes"]
    assert runs[0].report["fidelity"]["promised"] == 45
    assert torch.equal(runs[0].latents, simulated(name, 45).latents)


QUALITIES: list[dict[str, Any]] = [{}, {"quality": None}, {"quality": "balanced"}, {"quality": 0.5}]


@pytest.mark.parametrize("name", ["tiny-sd3", "tiny-sdxl"])
def test_promises_are_kept_without_a_calibration(name: str) -> None:
    """True mean PSNR in pixels against the image of full steps alone; few prompts, so wider bounds."""
    config = {"strategy": "hybrid", "simulate": True, "calibration": Calibration("none", ())}
    exact, _ = images_of(name, strategy="cfg", simulate=True)
    counts = {}
    for promised in (40, 55):
        images, reports = images_of(name, fidelity=promised, **config)
        true = [psnr(255 * one, 255 * other) for one, other in zip(images, exact, strict=True)]
        assert sum(true) / len(true) >= promised - 6, true
        assert all(report["fidelity"]["promised"] == promised for report in reports)
        counts[promised] = sum(len(full_steps_of(report)) for report in reports)
    assert counts[40] < counts[55]


def images_of(name: str, **config: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """What a model generates of three prompts, from 0 to 1, and the reports."""
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    images, reports = [], []
    with parallelize(pipe, ParallelConfig(**config)) as parallel:
        for seed, prompt in enumerate(captions("evaluation", 3)):
            generator = torch.Generator().manual_seed(seed)
            arguments = {"num_inference_steps": 28, "guidance_scale": tiny.GUIDANCE[name], "output_type": "np"}
            images.append(parallel(prompt, generator=generator, **arguments).images[0])
            assert parallel.report is not None
            reports.append(parallel.report.to_dict())
    return images, reports
