"""Cached steps computed by hand: what they answer, what makes up for its errors, and the guided rule.

The stock pipeline generates, and its denoiser is replaced: full steps are the network's own, one branch after the
other; everything else is done here, in float64 and in other formulas than the code under test has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, RunReport, parallelize
from hybridiff.schedule.calibration import Calibration
from support.calibrations import ENTRY
from support.guided import GuidedByHand, Shown
from support.oracles import one_part_after_another, relative_difference
from support.pipelines import build, denoiser_of, generate
from support.schedules import guidance_except, guidance_until

STEPS = 12
FULL = [0, 1, 2, 5, 8, 10, 11]
FIXED = {"strategy": "hybrid", "step_kind": "cached", "full_steps": "0-2,5,8,10-11"}


def corrected_by(share: float) -> dict[str, Any]:
    """A config by which full steps make up for a share of the errors."""
    return {"calibration": Calibration("nobody's model", (replace(ENTRY, correction=share),))}


@dataclass
class Moves:
    """What a scheduler makes of the predictions of a run.

    Attributes:
        own: How far each one moves the sample in its own step.
        kept: By what the later steps multiply a sample, each.
        seen: How far each one moves what the network sees next.
    """

    own: list[float]
    kept: list[float]
    seen: list[float]

    @classmethod
    def of(cls, scheduler: Any, timestep: float, steps: int) -> Moves:
        """By the formulas of DDIM and of Euler's method, for a run that begins at a timestep."""
        begin = scheduler.timesteps.tolist().index(timestep)
        if type(scheduler).__name__ == "DDIMScheduler":
            alphas = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps]
            alphas = [*alphas, float(scheduler.final_alpha_cumprod)][begin : begin + steps + 1]
            kept = [(after / before) ** 0.5 for before, after in itertools.pairwise(alphas)]
            noise = [(1 - alpha) ** 0.5 for alpha in alphas]
            own = [noise[i + 1] - kept[i] * noise[i] for i in range(steps)]
            return cls(own, kept, own)
        sigmas = [float(sigma) for sigma in scheduler.sigmas][begin : begin + steps + 1]
        own = [after - before for before, after in itertools.pairwise(sigmas)]
        is_flow = type(scheduler).__name__.startswith("FlowMatch")
        seen = own if is_flow else [d / (s**2 + 1) ** 0.5 for d, s in zip(own, sigmas[1:], strict=True)]
        return cls(own, [1.0] * steps, seen)

    def ratio(self, earlier: int, step: int) -> float:
        """How far an earlier prediction has moved the sample by the end of a step, in units of that step's own."""
        reached = self.own[earlier]
        for between in range(earlier + 1, step + 1):
            reached *= self.kept[between]
        return reached / self.own[step]

    @property
    def weights(self) -> list[float]:
        mean = sum(abs(seen) for seen in self.seen) / len(self.seen)
        return [abs(seen) / mean for seen in self.seen]


class CachedByHand:
    """Answers a generation's evaluations, both branches in one call.

    Args:
        pipe: The pipeline, whose network it stands in for.
        whole: The network's own forward.
        correction: Share of the cached steps' errors to make up for.
        full: The full steps; None where the guided rule finds them.
        rule: Settings of the guided rule, without the weights.
    """

    def __init__(
        self,
        pipe: Any,
        whole: Callable[..., Any],
        correction: float,
        full: list[int] | None = None,
        rule: dict[str, Any] | None = None,
    ) -> None:
        self.pipe = pipe
        self.whole = whole
        self.correction = correction
        self.full = list(full or [0])
        self.rule = rule
        self.step = 0
        self.extra = 0  # evaluations of skip-layer guidance
        self.cached: list[tuple[int, torch.Tensor]] = []
        self.seen: list[tuple[int, torch.Tensor]] = []  # full steps and their predictions
        self.gaps: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each, where lines led and what was right: guided
        self.shown: list[Shown] = []
        self.before: torch.Tensor | None = None  # prediction of the full step before, as the network gave it

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        if kwargs.get("skip_layers"):
            self.extra += 1
            return self.whole(*args, **kwargs)  # type: ignore[no-any-return]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        if self.step == 0:
            first = float(timestep.flatten()[0])
            self.moves = Moves.of(self.pipe.scheduler, first, self.pipe.num_timesteps)
            self.begin = self.pipe.scheduler.timesteps.tolist().index(first)
        prediction = self.answer(*args, **kwargs)
        self.step += 1
        return (prediction,)

    def answer(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self.pipe.do_classifier_free_guidance:
            if all(step in self.full for step in range(self.step)):
                return self.whole(*args, **kwargs)[0]  # type: ignore[no-any-return] # before the parallel phase
            self.end_guidance()
        if self.step in self.full:
            return self.full_step(self.whole(*args, **kwargs)[0])
        foreseen = self.seen[-1][1] + self.share() * self.line(self.step)
        self.cached.append((self.step, foreseen))
        return foreseen.float()

    def line(self, step: int) -> torch.Tensor:
        """Where the line through the last two full steps leads, from the last one on."""
        if len(self.seen) < 2:
            return torch.zeros_like(self.seen[-1][1])
        return through(self.seen[-2:], step) - self.seen[-1][1]

    def share(self) -> torch.Tensor:
        """How much of the line to follow, one number per row: weighted least squares, where the fit is good."""
        if not self.gaps:
            return torch.zeros(len(self.seen[-1][1]), 1, 1, 1, dtype=torch.float64)
        ages = range(len(self.gaps) - 1, -1, -1)
        lines, changes = (
            torch.cat([0.5 ** (age / 2) * gap[part] for age, gap in zip(ages, self.gaps, strict=True)], 1)
            for part in (0, 1)
        )
        explained = torch.nn.functional.cosine_similarity(lines, changes).clamp_min(0) ** 2
        slope = (lines * changes).sum(1) / lines.square().sum(1)
        return (slope.clamp(0, 1) * ((explained - 0.6) / 0.3).clamp(0, 1)).repeat(2).reshape(-1, 1, 1, 1)

    def learn(self, undisturbed: torch.Tensor) -> None:
        """What the cached steps before a full one should have answered, and where the line had led."""
        points, held = [*self.seen, (self.step, undisturbed)][-4:], self.seen[-1][1]
        lines = torch.cat([self.guided(self.line(step)).flatten(1) for step, _ in self.cached], 1)
        changes = torch.cat([self.guided(through(points, step) - held).flatten(1) for step, _ in self.cached], 1)
        self.gaps.append((lines, changes))

    def guided(self, rows: torch.Tensor) -> torch.Tensor:
        scale = float(self.pipe.guidance_scale)
        unconditional, conditional = rows.chunk(2)
        return (1 - scale) * unconditional + scale * conditional

    def end_guidance(self) -> None:
        """All further steps are full, and what was seen so far counts for the conditional branch alone."""
        self.full += range(self.full[-1] + 1, self.pipe.num_timesteps)
        self.full.append(self.step)
        images = self.images
        self.seen = [(step, prediction[-images:]) for step, prediction in self.seen]
        self.cached = [(step, held[-images:]) for step, held in self.cached]

    def full_step(self, prediction: torch.Tensor) -> torch.Tensor:
        undisturbed = prediction.double()
        if self.pipe.do_classifier_free_guidance:
            self.images = len(prediction) // 2
            self.look_at(prediction.double())
            undisturbed = self.without_pull(undisturbed)
            if self.cached:
                self.learn(undisturbed)
        answer = undisturbed + self.correction * self.made_up_for(undisturbed)
        self.seen.append((self.step, undisturbed))
        self.cached = []
        return answer.float()

    def made_up_for(self, undisturbed: torch.Tensor) -> torch.Tensor:
        """What the cached steps before got wrong, in units of this step's prediction."""
        points = [*self.seen, (self.step, undisturbed)][-4:]
        total = torch.zeros_like(undisturbed)
        for step, held in self.cached:
            error = through(points, step) - held
            total = total + self.moves.ratio(step, self.step) * error
        return total

    def without_pull(self, prediction: torch.Tensor) -> torch.Tensor:
        """What leads to this prediction once guidance has pulled the displaced sample back, found by iteration."""
        whole, scale = len(self.pipe.scheduler.timesteps), float(self.pipe.guidance_scale)
        progress = (self.begin + self.step) / whole
        rate = min(0.5, min(0.25, 0.06 * (scale - 1) * math.exp(-2 * progress)) * 50 / whole)
        if not self.correction:
            return prediction
        undisturbed = prediction
        for _ in range(200):  # damped, as it turns a change in itself into up to twice as much
            guided = self.guided(self.made_up_for(undisturbed))
            undisturbed = 0.7 * undisturbed + 0.3 * (prediction - rate * torch.cat([guided, guided]))
        return undisturbed

    def look_at(self, prediction: torch.Tensor) -> None:
        """What the full step shows, and the next one by the guided rule."""
        unconditional, conditional = prediction.chunk(2)
        discrepancy = float((conditional - unconditional).abs().sum() / unconditional.abs().sum())
        drift = float("nan")
        if self.before is not None:
            moved = [
                float((now - before).norm() / now.norm()) for now, before in zip(prediction, self.before, strict=True)
            ]
            drift = (sum(one**2 for one in moved) / len(moved)) ** 0.5
        self.before = prediction
        self.shown.append((self.step, discrepancy, drift))
        if self.rule is not None:
            self.by_hand = GuidedByHand(**self.rule, weights=self.moves.weights)
            self.full.append(self.by_hand.next_full(self.shown))


def through(points: list[tuple[int, torch.Tensor]], position: int) -> torch.Tensor:
    """The polynomial through points, at a position (Neville's algorithm)."""
    places, values = [place for place, _ in points], [value for _, value in points]
    for width in range(1, len(points)):
        for i in range(len(points) - width):
            left, right = position - places[i], places[i + width] - position
            values[i] = (right * values[i] + left * values[i + 1]) / (left + right)
    return values[0]


def generated_by_hand(
    name: str,
    scheduler: str | None,
    steps: int,
    changes: dict[str, Any],
    make: type[CachedByHand] = CachedByHand,
    **settings: Any,
) -> tuple[torch.Tensor, CachedByHand]:
    pipe = build(name, scheduler)
    network = denoiser_of(pipe)
    with one_part_after_another(pipe):
        by_hand = make(pipe, network.forward, **settings)
        network.forward = by_hand
        latents = generate(pipe, name, num_inference_steps=steps, **changes)
    return latents, by_hand


def generated_by_hybrid(
    name: str, scheduler: str | None, steps: int, changes: dict[str, Any], **config: Any
) -> tuple[torch.Tensor, RunReport]:
    with parallelize(build(name, scheduler), ParallelConfig(simulate=True, **config)) as parallel:
        latents = generate(parallel, name, num_inference_steps=steps, **changes)
        assert parallel.report is not None
        return latents, parallel.report


def full_steps_of(report: RunReport) -> list[int]:
    return [step.index for step in report.steps if step.kind.value == "full"]


@pytest.mark.parametrize(
    ("name", "scheduler", "correction", "changes"),
    [
        ("sd3", "flow-euler", 1.0, {}),
        ("sd3", "flow-euler", 0.5, {"num_images_per_prompt": 2}),
        ("sd15", "ddim", 1.0, {"num_images_per_prompt": 2}),
        ("sd15", "ddim", 0.7, {}),
        ("sdxl two levels", "euler", 1.0, {}),
        ("sdxl two levels", "euler", 0.0, {"guidance_rescale": 0.5}),
    ],
)
def test_a_fixed_schedule(name: str, scheduler: str, correction: float, changes: dict[str, Any]) -> None:
    expected, by_hand = generated_by_hand(name, scheduler, STEPS, changes, correction=correction, full=FULL)
    generated, report = generated_by_hybrid(name, scheduler, STEPS, changes, **FIXED, **corrected_by(correction))
    assert relative_difference(generated, expected) < 1e-4
    assert (by_hand.step, full_steps_of(report)) == (STEPS, FULL)
    assert [(step.index, step.discrepancy) for step in report.steps if step.discrepancy is not None] == [
        (step, pytest.approx(discrepancy, rel=1e-4)) for step, discrepancy, _ in by_hand.shown
    ]
    assert [(step.index, step.drift) for step in report.steps if step.drift is not None] == [
        (step, pytest.approx(drift, rel=1e-3)) for step, _, drift in by_hand.shown[1:]
    ]


@pytest.mark.parametrize(("name", "scheduler"), [("sd3", "flow-euler"), ("sd15", "ddim")])
def test_holding_without_correction_is_exact(name: str, scheduler: str) -> None:
    """Before anything was learned a step answers the very prediction of the last full one."""
    full = [0, 1, 2, *range(5, STEPS)]
    expected, _ = generated_by_hand(name, scheduler, STEPS, {}, correction=0.0, full=full)
    one_gap = FIXED | {"full_steps": "0-2,5-11"}
    generated, _ = generated_by_hybrid(name, scheduler, STEPS, {}, **one_gap, **corrected_by(0.0))
    assert torch.equal(generated, expected)


@pytest.mark.parametrize(("name", "scheduler"), [("sd3", "flow-euler"), ("sd15", "ddim")])
def test_what_is_made_up_for_matters(name: str, scheduler: str) -> None:
    """Otherwise the tests above would pass without it."""
    held, corrected = (
        generated_by_hybrid(name, scheduler, STEPS, {}, **FIXED, **corrected_by(share))[0] for share in (0.0, 1.0)
    )
    assert relative_difference(corrected, held) > 1e-3  # ten times what the tests above allow


@pytest.mark.parametrize("off", [{1}, {1, 2}, {2}])
@pytest.mark.parametrize(("name", "scheduler", "images"), [("sd3", "flow-euler", 1), ("sd15", "ddim", 2)])
def test_guidance_that_is_off_for_some_steps_of_the_warm_up(
    name: str, scheduler: str, images: int, off: set[int]
) -> None:
    """What these steps predict, of one branch, is no part of what the later ones make up for."""
    changes = {"num_images_per_prompt": images}
    expected, by_hand = generated_by_hand(
        name, scheduler, STEPS, changes | guidance_except(name, off), correction=1.0, full=FULL
    )
    generated, report = generated_by_hybrid(name, scheduler, STEPS, changes | guidance_except(name, off), **FIXED)
    assert relative_difference(generated, expected) < 1e-4
    assert full_steps_of(report) == FULL
    assert [step for step, *_ in by_hand.shown] == [step for step in FULL if step not in off]


PENDING = [3, 4, 6, 7, 9]
"""Cached steps: guidance that ends with one of them leaves errors that nothing has made up for."""


@pytest.mark.parametrize("last", [1, 2, 5, 8, *PENDING])
@pytest.mark.parametrize(("name", "scheduler", "images"), [("sd3", "flow-euler", 1), ("sd15", "ddim", 2)])
def test_guidance_that_ends(name: str, scheduler: str, images: int, last: int) -> None:
    """The first step without it makes up for the conditional branch alone."""
    changes = guidance_until(name, last) | {"num_images_per_prompt": images}
    expected, _ = generated_by_hand(name, scheduler, STEPS, changes, correction=1.0, full=FULL)
    generated, report = generated_by_hybrid(name, scheduler, STEPS, changes, **FIXED)
    assert relative_difference(generated, expected) < 1e-4
    assert full_steps_of(report) == [step for step in range(STEPS) if step in FULL or step > last]
    assert (report.tau1, report.tau2) == (2, max(2, last))
    held, _ = generated_by_hybrid(name, scheduler, STEPS, changes, **FIXED, **corrected_by(0.0))
    assert torch.equal(held, generated) == (last <= 2)


@pytest.mark.parametrize("last", PENDING)
@pytest.mark.parametrize(("name", "scheduler"), [("sd3", "flow-euler"), ("sd15", "ddim")])
def test_what_is_pending_when_guidance_ends_matters(name: str, scheduler: str, last: int) -> None:
    """By hand too, with what would be lost: the errors of the cached steps right before the end."""
    changes = guidance_until(name, last)
    expected, by_hand = generated_by_hand(name, scheduler, STEPS, changes, correction=1.0, full=FULL)

    def forget(self: CachedByHand) -> None:
        CachedByHand.end_guidance(self)
        self.cached = []

    by_hand_without = type("Forgetful", (CachedByHand,), {"end_guidance": forget})
    without, _ = generated_by_hand(name, scheduler, STEPS, changes, by_hand_without, correction=1.0, full=FULL)
    assert by_hand.step == STEPS
    assert relative_difference(without, expected) > 2e-4  # twice what the tests above allow


@pytest.mark.parametrize("last", [4, 9])
@pytest.mark.parametrize("ranks", [1, 4])
def test_other_numbers_of_ranks_make_up_for_the_same(ranks: int, last: int) -> None:
    changes = guidance_until("sd3", last) | {"num_images_per_prompt": 2}
    two, _ = generated_by_hybrid("sd3", None, STEPS, changes, **FIXED)
    generated, _ = generated_by_hybrid("sd3", None, STEPS, changes, devices=ranks, **FIXED)
    assert relative_difference(generated, two) < 1e-4


@pytest.mark.parametrize(
    ("name", "scheduler", "steps", "tolerance", "longest", "changes"),
    [
        pytest.param("sd3", "flow-euler", 16, 0.15, 2, {}, id="flow"),
        pytest.param("sd3", "flow-euler", 34, 0.1, 4, {"num_images_per_prompt": 2}, id="flow, two images"),
        pytest.param("sd15", "ddim", 34, 0.15, 4, {}, id="DDIM"),
        pytest.param("sdxl two levels", "euler", 25, 0.15, 3, {"num_images_per_prompt": 2}, id="Euler, two images"),
        pytest.param("sd3 img2img", "flow-euler", 20, 0.15, 2, {}, id="flow, image to image"),
        pytest.param("sd15 img2img", "ddim", 34, 0.15, 4, {}, id="DDIM, image to image"),
        pytest.param("sdxl img2img", "euler", 25, 0.15, 3, {}, id="Euler, image to image"),
        pytest.param("sdxl inpaint 9 channels", "euler", 20, 0.15, 2, {}, id="Euler, inpainting"),
        pytest.param("sd3 inpaint", "flow-euler", 20, 0.15, 2, {}, id="flow, inpainting"),
        pytest.param("sdxl two levels", "euler", 25, 0.15, 3, {"denoising_end": 0.6}, id="Euler, the first steps"),
    ],
)
def test_a_guided_schedule(
    name: str, scheduler: str, steps: int, tolerance: float, longest: int, changes: dict[str, Any]
) -> None:
    rule = {"tolerance": tolerance, "longest": longest}
    expected, by_hand = generated_by_hand(name, scheduler, steps, changes, correction=1.0, rule=rule)
    generated, report = generated_by_hybrid(name, scheduler, steps, changes, strategy="hybrid", tolerance=tolerance)
    full = [step for step, *_ in by_hand.shown]
    assert full_steps_of(report) == full
    assert (report.tau1, report.tau2) == by_hand.by_hand.taus(by_hand.shown)
    assert relative_difference(generated, expected) < 1e-4
    assert len(report.steps) == by_hand.step
    assert len(full) < by_hand.step - 2  # it is not a schedule of full steps


SKIP_LAYERS = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.6}
WITH_EXTRA = [3, 4, 5, 6, 7]
"""Of twelve steps those in which the pipeline evaluates the network once more."""


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", ["sd3", "sd3.5"])
def test_steps_of_skip_layer_guidance_are_full(name: str, images: int) -> None:
    """A fresh prediction must not be mixed with a held one: the schedule would have cached 3, 4, 6 and 7."""
    changes = SKIP_LAYERS | {"num_images_per_prompt": images}
    full = sorted({*FULL, *WITH_EXTRA})
    expected, by_hand = generated_by_hand(name, None, STEPS, changes, correction=1.0, full=full)
    generated, report = generated_by_hybrid(name, None, STEPS, changes, **FIXED)
    assert full_steps_of(report) == full
    assert [step.index for step in report.steps if step.extra_evaluations] == WITH_EXTRA
    assert by_hand.extra == len(WITH_EXTRA)
    assert relative_difference(generated, expected) < 1e-4
    exact, _ = generated_by_hand(name, None, STEPS, changes, correction=0.0, full=full)
    held, _ = generated_by_hybrid(name, None, STEPS, changes, **FIXED, **corrected_by(0.0))
    assert torch.equal(held, exact)


@pytest.mark.parametrize("config", [FIXED, {"strategy": "hybrid", "tolerance": 1e9}], ids=["fixed", "guided"])
def test_skip_layer_guidance_in_every_step_is_cfg(config: dict[str, Any]) -> None:
    """But for the first step, which is full in any case."""
    changes = SKIP_LAYERS | {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    generated, report = generated_by_hybrid("sd3", None, STEPS, changes, **config)
    exact, _ = generated_by_hybrid("sd3", None, STEPS, changes, strategy="cfg")
    assert full_steps_of(report) == list(range(STEPS))
    assert torch.equal(generated, exact)
