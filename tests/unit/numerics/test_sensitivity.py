"""How far predictions move the sample: against closed forms, and against the schedulers themselves."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import diffusers
import pytest
import torch

from hybridiff.models.schedulers import SCHEDULERS, build_scheduler
from hybridiff.numerics.sensitivity import Sensitivity, _measured, measure_sensitivity
from support.pipelines import SCHEDULERS as OWN

STEPS = 10


@pytest.fixture(autouse=True)
def _measured_afresh() -> None:
    _measured.cache_clear()


def scheduler(name: str, steps: int = STEPS, **changes: Any) -> Any:
    """A scheduler with its timesteps set, as a pipeline sets them."""
    built = build_scheduler(name, OWN["flow-euler" if name.startswith("flow") else "ddim"]())
    built = type(built).from_config(built.config, **changes)
    built.set_timesteps(steps)
    return built


def mean_of_one(moved: list[float]) -> list[float]:
    return [value * len(moved) / sum(moved) for value in moved]


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-5, atol=1e-7)


def test_flow_matching() -> None:
    """`x' = x + (s' - s) v`: the differences of the sigmas."""
    given = scheduler("flow-euler")
    differences = given.sigmas.diff().tolist()
    sensitivity = measure_sensitivity(given, STEPS)
    assert_same(
        sensitivity.on_sample, [[d if j <= i else 0.0 for j, d in enumerate(differences)] for i in range(STEPS)]
    )
    assert_same(sensitivity.weights, mean_of_one([abs(d) for d in differences]))


def test_ddim() -> None:
    """`x' = sqrt(a'/a) x + (sqrt(1 - a') - sqrt(a'/a) sqrt(1 - a)) e`."""
    given = scheduler("ddim")
    alphas = [float(given.alphas_cumprod[t]) for t in given.timesteps] + [float(given.final_alpha_cumprod)]
    scale = [(after / before) ** 0.5 for before, after in itertools.pairwise(alphas)]
    own = [(1 - alphas[i + 1]) ** 0.5 - scale[i] * (1 - alphas[i]) ** 0.5 for i in range(STEPS)]
    expected = [[0.0] * STEPS for _ in range(STEPS)]
    for j in range(STEPS):
        reached = own[j]
        for i in range(j, STEPS):
            reached *= 1.0 if i == j else scale[i]
            expected[i][j] = reached
    sensitivity = measure_sensitivity(given, STEPS)
    assert_same(sensitivity.on_sample, expected)
    assert_same(sensitivity.weights, mean_of_one([abs(value) for value in own]))


def test_ddim_and_euler_agree_on_what_the_network_sees() -> None:
    """The same method in other units: Euler's sample is DDIM's times `sqrt(1 + s^2)`, and scaled by it at the input."""
    ddim = scheduler("ddim", timestep_spacing="leading", set_alpha_to_one=True)
    euler = scheduler("euler", timestep_spacing="leading")
    assert ddim.timesteps.tolist() == euler.timesteps.tolist()
    one, other = measure_sensitivity(ddim, STEPS), measure_sensitivity(euler, STEPS)
    assert_same(one.weights, other.weights)
    scales = (1 + euler.sigmas[1:] ** 2).sqrt().tolist()
    scaled = [[value / scale for value in row] for row, scale in zip(other.on_sample, scales, strict=True)]
    assert_same(one.on_sample, scaled)
    assert one.on_sample != other.on_sample


def test_an_ancestral_step_moves_the_sample_as_far_as_its_deterministic_part() -> None:
    """Of each step Euler's method goes down to `s_down`; the noise that is put back is the same with any prediction."""
    given = scheduler("euler-ancestral")
    expected = []
    for now, after in zip(given.sigmas[:-1], given.sigmas[1:], strict=True):
        up = (after**2 * (now**2 - after**2) / now**2) ** 0.5
        expected.append(float((after**2 - up**2) ** 0.5 - now))
    sensitivity = measure_sensitivity(given, STEPS)
    assert_same([sensitivity.on_sample[i][i] for i in range(STEPS)], expected)
    assert_same(sensitivity.on_sample[-1], expected)


def steps_of(given: Any, timesteps: Any, predictions: torch.Tensor, sample: torch.Tensor) -> list[torch.Tensor]:
    """The samples of a generation after each step; noise by a generator with a fixed seed."""
    noise = {"generator": torch.Generator().manual_seed(11)}
    noise = noise if "generator" in inspect.signature(given.step).parameters else {}
    samples = []
    for prediction, t in zip(predictions, timesteps, strict=True):
        if hasattr(given, "scale_model_input"):
            given.scale_model_input(sample, t)  # some warn otherwise
        sample = given.step(prediction, t, sample, return_dict=False, **noise)[0].double()
        samples.append(sample)
    return samples


@pytest.mark.parametrize("part", ["all steps", "the last ones", "the first ones"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_scheduler_itself(name: str, part: str) -> None:
    """Whatever the start and the predictions: changes of the predictions add up, each with its own sensitivity."""
    begin, end = {"all steps": (0, None), "the last ones": (2, None), "the first ones": (0, 5)}[part]
    given, again, measured = (scheduler(name, 8) for _ in range(3))
    for each in (given, again, measured):
        if begin and hasattr(each, "set_begin_index"):  # as pipelines from image to image do
            each.set_begin_index(begin)
    timesteps = given.timesteps[begin:end]
    random = torch.Generator().manual_seed(3)
    start = 5.0 * torch.randn(1, 4, 2, 2, generator=random, dtype=torch.float64)
    predictions, changes = torch.randn(2, len(timesteps), 1, 4, 2, 2, generator=random, dtype=torch.float64)

    sensitivity = measure_sensitivity(
        measured, len(timesteps), float(timesteps[0]) if part == "the first ones" else None
    )
    assert sensitivity.begin == begin
    plain = steps_of(given, timesteps, predictions, start)
    changed = steps_of(again, timesteps, predictions + changes, start)
    for reached, other, row in zip(plain, changed, sensitivity.on_sample, strict=True):
        expected = sum(weight * change for weight, change in zip(row, changes, strict=True))
        torch.testing.assert_close(other - reached, expected, rtol=1e-4, atol=1e-5)
    assert sum(sensitivity.weights) == pytest.approx(len(timesteps))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_leaves_nothing_behind(name: str) -> None:
    given = scheduler(name)
    before, seed = dict(vars(given)), torch.get_rng_state()
    measured = measure_sensitivity(given, len(given.timesteps))
    assert torch.equal(torch.get_rng_state(), seed)
    assert vars(given).keys() == before.keys()
    assert all(vars(given)[key] is value for key, value in before.items())
    torch.rand(1)
    _measured.cache_clear()
    assert measure_sensitivity(given, len(given.timesteps)) == measured  # whatever the random state


def test_what_was_measured_holds_for_the_same_timesteps_only() -> None:
    """Measured once a process, whatever object has them; another number of them or other settings are another thing."""
    measured = measure_sensitivity(scheduler("euler"), STEPS)
    assert measure_sensitivity(scheduler("euler"), STEPS) is measured
    others = [
        measure_sensitivity(scheduler("euler", 12), STEPS),
        measure_sensitivity(scheduler("euler", 12), STEPS, float(scheduler("euler", 12).timesteps[0])),
        measure_sensitivity(scheduler("euler", use_karras_sigmas=True), STEPS),
        measure_sensitivity(scheduler("euler", prediction_type="v_prediction"), STEPS),
        measure_sensitivity(scheduler("euler-ancestral"), STEPS),
    ]
    assert len({str(other.on_sample) for other in [measured, *others]}) == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_on_a_gpu(name: str) -> None:
    """Its timesteps, and some schedulers' sigmas too, lie there; nothing of the measurement runs there."""
    given = scheduler(name)
    expected = measure_sensitivity(given, len(given.timesteps))
    given.set_timesteps(STEPS, device="cuda")
    torch.cuda.manual_seed(5)
    seed = torch.cuda.get_rng_state()
    measured = measure_sensitivity(given, len(given.timesteps), float(given.timesteps[0]))
    assert_same(measured.on_sample, expected.on_sample)
    assert torch.equal(torch.cuda.get_rng_state(), seed)


@pytest.mark.parametrize(
    "given",
    [
        scheduler("ddim", thresholding=True),
        scheduler("ddim", clip_sample=True),
        scheduler("ddpm", clip_sample=True),
        scheduler("dpmsolver++", thresholding=True),
        scheduler("unipc", thresholding=True),
    ],
    ids=lambda given: type(given).__name__,
)
def test_schedulers_that_are_not_linear_have_none(given: Any) -> None:
    sensitivity = measure_sensitivity(given, STEPS)
    assert sensitivity == Sensitivity.unknown(STEPS)
    assert sensitivity.gain(0, 1) == 0.0


def test_schedulers_that_cannot_run_by_themselves_have_none() -> None:
    class Odd(diffusers.DDIMScheduler):  # type: ignore[misc]
        def step(self, model_output: Any, timestep: Any, sample: Any, **_: Any) -> Any:
            raise ValueError("this scheduler wants more")

    given = Odd()
    given.set_timesteps(STEPS)
    assert measure_sensitivity(given, STEPS) == Sensitivity.unknown(STEPS)


def test_a_sensitivity_that_is_wrong_is_found_out() -> None:
    """Noise that no seed decides, and what is linear only near zero, though no setting says so."""
    generator = torch.Generator()

    class Unseeded(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            (sample,) = super().step(*args, **kwargs)[:1]
            return (sample + 0.1 * torch.randn(sample.shape, generator=generator),)

    class Bounded(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            return (super().step(*args, **kwargs)[0].clamp(-500, 500),)

    for kind in (Unseeded, Bounded):
        given = kind()
        given.set_timesteps(STEPS)
        sensitivity = measure_sensitivity(given, STEPS)
        assert sensitivity == Sensitivity.unknown(STEPS)
        assert sensitivity.unknown_why == "is not linear, or its noise is never the same"


def test_where_noise_is_added_errors_count_as_the_network_sees_them() -> None:
    names = ("euler", "euler-ancestral")
    plain, noisy = (measure_sensitivity(scheduler(name, prediction_type="v_prediction"), STEPS) for name in names)
    assert (plain.is_stochastic, plain.furthest, plain.influence) == (False, [], plain.on_sample[-1])
    assert noisy.is_stochastic
    scales = [*(1 / (1 + scheduler("euler-ancestral").sigmas[1:-1] ** 2).sqrt()).tolist(), 1.0]
    rows = [[scale * abs(value) for value in row] for row, scale in zip(noisy.on_sample, scales, strict=True)]
    expected = [max(column) for column in zip(*rows, strict=True)]
    assert_same(noisy.influence, expected)
    assert noisy.influence[1] > 2 * abs(noisy.on_sample[-1][1]), "the scheduler by itself forgets"


def test_the_first_evaluation_of_a_second_order_step_counts() -> None:
    """Its sample is thrown away, but the network has seen it."""
    given = scheduler("flow-heun")
    sensitivity = measure_sensitivity(given, len(given.timesteps))
    assert not sensitivity.is_stochastic
    first = [abs(final) for final in sensitivity.on_sample[-1]][0:-1:2]
    assert_same(sensitivity.influence[0:-1:2], [2 * value for value in first])


def test_where_steps_lie() -> None:
    assert measure_sensitivity(scheduler("ddim"), STEPS).places is None
    heun = scheduler("heun", 5)
    assert measure_sensitivity(heun, 9).places == (0.0, 1.0, 1.25, 2.0, 2.25, 3.0, 3.25, 4.0, 4.25)
    heun.set_begin_index(4)  # from image to image: the second evaluation at a time, where a step begins
    assert measure_sensitivity(heun, 5, float(heun.timesteps[4])).places == (0.0, 1.0, 1.25, 2.0, 2.25)


def test_where_nothing_is_known_all_steps_count_alike() -> None:
    assert Sensitivity.unknown(3) == Sensitivity([1.0] * 3, [])


def test_gains() -> None:
    sensitivity = Sensitivity([1.0] * 3, [[0.5, 0.0, 0.0], [0.4, -0.8, 0.0], [0.2, 0.3, 1e-4]])
    assert sensitivity.gain(0, 1) == pytest.approx(0.2 / 0.3), "as far on as the run goes"
    assert sensitivity.gain(0, 2) == 0.0, "the step moves too little"
    assert Sensitivity.unknown(3).gain(0, 1) == 0.0
    forgetful = Sensitivity([1.0] * 3, [[0.5, 0.0, 0.0], [0.4, -0.8, 0.0], [1e-9, 1e-9, 1.0]])
    assert forgetful.gain(0, 1) == -0.5


@pytest.mark.parametrize("name", ["dpmsolver++", "unipc", "ddim", "euler"])
def test_a_gain_makes_up_for_an_earlier_prediction_once_the_memory_has_run_out(name: str) -> None:
    given = scheduler(name, 20)
    sensitivity = measure_sensitivity(given, 20)
    earlier, step = 8, 10
    gain = sensitivity.gain(earlier, step)
    rows = sensitivity.on_sample[step : step + 6]
    left = [abs(row[earlier] - gain * row[step]) / abs(row[earlier]) for row in rows]
    assert max(left[3:]) < 0.02
    if name in ("dpmsolver++", "unipc"):
        assert left[0] > 0.1, "right after the step it is not all there yet"


@pytest.mark.parametrize("name", ["ddim", "tcd"])
def test_what_the_pipeline_hands_each_step_decides_whether_noise_is_added(name: str) -> None:
    """DDIM's own default is none, TCD's is some; pipelines hand both the same."""
    given = scheduler("ddim") if name == "ddim" else diffusers.TCDScheduler.from_config(scheduler("ddim").config)
    given.set_timesteps(STEPS)
    by_default, none, some = (measure_sensitivity(given, STEPS, eta=eta) for eta in (None, 0.0, 0.5))
    assert (by_default.is_stochastic, none.is_stochastic, some.is_stochastic) == (name == "tcd", False, True)
    assert (none.influence, some.influence) == (none.on_sample[-1], some.furthest)
    assert some.on_sample != none.on_sample, "the scheduler forgets what the network has seen"


def test_schedulers_that_take_no_eta_are_not_handed_any() -> None:
    assert measure_sensitivity(scheduler("euler"), STEPS, eta=0.5) == measure_sensitivity(scheduler("euler"), STEPS)


@pytest.mark.parametrize("name", ["dpmsolver++", "heun"])
def test_the_rest_of_a_run_is_a_part_of_the_whole(name: str) -> None:
    scheduler = OWN[name]()
    scheduler.set_timesteps(8)
    steps = len(scheduler.timesteps)
    whole = measure_sensitivity(scheduler, steps)
    rest = whole.rest(3)
    assert whole.rest(0) is whole
    assert (len(rest.weights), rest.begin) == (steps - 3, whole.begin + 3)
    assert sum(rest.weights) == pytest.approx(steps - 3)
    assert rest.influence == whole.influence[3:]
    for earlier in range(3, steps - 1):
        assert rest.gain(earlier - 3, steps - 4) == whole.gain(earlier, steps - 1)
    assert rest.places == (None if whole.places is None else whole.places[3:])
