"""Pictures that ranks decode and encode together: their simulation bit for bit, the stock picture to rounding."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, load_pipeline, parallelize
from hybridiff.sharding import vae
from support.failing import GROUP_TIMEOUT, QUICK, SOON, Planted
from support.jobs import Outcome, attempt, rank
from support.oracles import relative_difference
from support.pipelines import build, call_arguments, generate
from support.ranks import run_ranks
from support.schedules import callback_at, capped

pytestmark = pytest.mark.distributed

NAME = "sdxl two levels"
ANY = 64
"""Pixels from which on pictures are shared in most tests."""


@dataclass
class Drawn:
    """A picture, and the rows that the first layers of decoder and encoder were given on the way."""

    picture: torch.Tensor | None
    rows: dict[str, list[int]] = field(default_factory=dict)


def draw(name: str, least: int, changes: dict[str, Any], change: Callable[[Any], None], **config: Any) -> Drawn:
    """Draw with a tiny pipeline that `change` has changed; pictures are shared from so many pixels on."""
    before, vae.LEAST_PIXELS = vae.LEAST_PIXELS, least
    pipe = build(name)
    change(pipe)
    rows: dict[str, list[int]] = {"decoder": [], "encoder": []}
    for part, seen in rows.items():
        getattr(pipe.vae, part).conv_in.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(given[0].shape[2])
        )
    try:
        with parallelize(pipe, ParallelConfig(**config)) as parallel:
            return Drawn(parallel(**call_arguments(name, **{"output_type": "pt", **changes})).images, rows)
    finally:
        vae.LEAST_PIXELS = before


def unchanged(_: Any) -> None:
    """The pipeline as it is."""


def tiled(pipe: Any) -> None:
    pipe.vae.enable_tiling()


def tiled_on_rank_1(pipe: Any) -> None:
    if rank() == 1:
        pipe.vae.enable_tiling()


def draw_on_rank(
    name: str, least: int, changes: dict[str, Any], change: Callable[[Any], None], config: dict[str, Any]
) -> Drawn:
    return draw(name, least, changes, change, **config)


@pytest.mark.parametrize(
    ("name", "ranks", "changes", "config", "rows"),
    [
        pytest.param(NAME, 2, {}, {}, [8, 8], id="two ranks"),
        pytest.param(NAME, 3, {}, {}, [6, 5, 5], id="three"),
        pytest.param("sd3", 2, {"num_images_per_prompt": 3}, {}, [8, 8], id="three pictures"),
        pytest.param("sd15", 3, {"height": 40}, {}, [7, 7, 6], id="another height"),
        pytest.param(NAME, 2, {}, {"strategy": "hybrid", "full_steps": "0-1"}, [8, 8], id="cached steps at the end"),
        pytest.param(NAME, 2, {}, capped(4, 1, 1), [8, 8], id="pipelined steps"),
    ],
)
def test_ranks_that_decode_together(
    name: str, ranks: int, changes: dict[str, Any], config: dict[str, Any], rows: list[int]
) -> None:
    drawn = run_ranks(draw_on_rank, ranks, name, ANY, changes, unchanged, config | {"outputs": "all"})
    assert [of_rank.rows["decoder"] for of_rank in drawn] == [[own] for own in rows]
    simulated = draw(name, ANY, changes, unchanged, simulate=True, devices=ranks, **config)
    whole = draw(name, 10**9, changes, unchanged, simulate=True, devices=ranks, **config)
    assert simulated.picture is not None
    assert whole.picture is not None
    for of_rank in drawn:
        assert of_rank.picture is not None
        assert torch.equal(of_rank.picture, simulated.picture)
    assert relative_difference(simulated.picture, whole.picture) < 1e-5
    stock = generate(build(name), name, output_type="pt", **changes)
    assert config or relative_difference(simulated.picture, stock) < 1e-4


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_encode_together_what_is_to_be_changed(ranks: int) -> None:
    name = "sdxl img2img"
    drawn = run_ranks(draw_on_rank, ranks, name, ANY, {}, unchanged, {"outputs": "all"})
    parts = {2: [8, 8], 3: [6, 5, 5]}[ranks]
    assert [of_rank.rows for of_rank in drawn] == [{"decoder": [own], "encoder": [2 * own]} for own in parts]
    stock = generate(build(name), name, output_type="pt")
    for of_rank in drawn:
        assert of_rank.picture is not None
        assert relative_difference(of_rank.picture, stock) < 1e-4


def draw_512() -> tuple[Any, list[int]]:
    pipe, rows = load_pipeline("tiny-sdxl"), []
    pipe.vae.decoder.conv_in.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[2]))
    with parallelize(pipe) as parallel:
        return parallel(**_call_512()).images, rows


def _call_512() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    size = {"height": 512, "width": 512, "num_inference_steps": 2}
    return {"prompt": "a red ring", "generator": generator, "output_type": "pt", **size}


def test_pictures_of_512_by_512_are_decoded_together_unasked() -> None:
    (picture, rows), (nothing, other_rows) = run_ranks(draw_512, 2)
    assert (rows, other_rows, nothing) == ([32], [32], None)
    assert relative_difference(picture, load_pipeline("tiny-sdxl")(**_call_512()).images) < 1e-4


@pytest.mark.parametrize(
    ("least", "change", "config", "rows"),
    [
        pytest.param(32 * 32 + 1, unchanged, {}, [[16], []], id="a small picture"),
        pytest.param(32 * 32 + 1, unchanged, {"outputs": "all"}, [[16], [16]], id="a small one wanted by all"),
        pytest.param(ANY, tiled, {}, [[16], []], id="tiling"),
        pytest.param(ANY, tiled_on_rank_1, {}, [[16], []], id="tiling on the other rank only"),
        pytest.param(ANY, unchanged, {"strategy": "serial"}, [[16], []], id="serial"),
        pytest.param(ANY, unchanged, {"shards": 1}, [[16], []], id="no shards"),
    ],
)
def test_ranks_that_do_not_decode_together(
    least: int, change: Callable[[Any], None], config: dict[str, Any], rows: list[list[int]]
) -> None:
    drawn = run_ranks(draw_on_rank, 2, NAME, least, {}, change, config)
    assert [of_rank.rows["decoder"] for of_rank in drawn] == rows
    picture = drawn[0].picture
    assert picture is not None
    assert (drawn[1].picture is None) == (config.get("outputs") != "all")
    whole = draw(NAME, 10**9, {}, unchanged, simulate=True, devices=2, **config).picture
    assert whole is not None
    assert torch.equal(picture, whole)


def draw_in_form(name: str, forms: tuple[str, str]) -> Drawn:
    return draw(name, ANY, {"output_type": forms[rank()]}, unchanged)


@pytest.mark.parametrize(
    ("name", "forms", "decoded", "encoded"),
    [
        pytest.param(NAME, ("pt", "latent"), [[16], []], [[], []], id="the leader's alone"),
        pytest.param(NAME, ("latent", "pt"), [[], []], [[], []], id="the other's, which nobody wants"),
        pytest.param(NAME, ("pt", "np"), [[8], [8]], [[], []], id="of two kinds"),
        pytest.param("sdxl img2img", ("latent", "latent"), [[], []], [[16], [16]], id="latents of both"),
    ],
)
def test_ranks_that_do_not_all_decode_do_not_do_so_together(
    name: str, forms: tuple[str, str], decoded: list[list[int]], encoded: list[list[int]]
) -> None:
    drawn = run_ranks(draw_in_form, 2, name, forms)
    assert [of_rank.rows["decoder"] for of_rank in drawn] == decoded
    assert [of_rank.rows["encoder"] for of_rank in drawn] == encoded


def draw_with_previews() -> list[int]:
    """Rows of the latents that were decoded, by rank 0 alone within steps, by both at the end."""
    vae.LEAST_PIXELS, pipe, rows = ANY, build(NAME), []
    pipe.vae.decoder.conv_in.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[2]))

    def preview(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if rank() == 0:
            pipe.vae.decode(tensors["latents"])
        return tensors

    with parallelize(pipe) as parallel:
        parallel(**call_arguments(NAME, output_type="pt", callback_on_step_end=preview))
    return rows


def test_a_callback_may_decode_on_one_rank_only() -> None:
    assert run_ranks(draw_with_previews, 2) == [[16, 16, 16, 16, 8], [8]]


def draw_until_it_is_stopped() -> list[int]:
    vae.LEAST_PIXELS, pipe, rows = ANY, build(NAME), []
    pipe.vae.decoder.conv_in.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[2]))
    stop = callback_at(0, lambda pipe: setattr(pipe, "_interrupt", rank() == 1))
    with parallelize(pipe) as parallel:
        parallel(**call_arguments(NAME, output_type="pt", num_inference_steps=8, callback_on_step_end=stop))
        parallel(**call_arguments(NAME, output_type="pt"))
    return rows


def test_what_was_stopped_is_decoded_by_each_rank() -> None:
    """Only the end of all steps tells ranks that they are through with them."""
    assert run_ranks(draw_until_it_is_stopped, 2) == [[16, 8], [16, 8]]


PLACES: dict[str, tuple[Callable[[Any], torch.nn.Module], str]] = {
    "decoder": (lambda pipe: pipe.vae.decoder.mid_block, "the end of the run"),
    "encoder": (lambda pipe: pipe.vae.encoder.mid_block, "the start of the run"),
    "before the decoder": (lambda pipe: pipe.vae.post_quant_conv, "the end of the run"),
}
"""Where a rank fails, and how the others call the place."""


def draw_until_rank_1_fails(place: str, way: str, timeout: float) -> tuple[Outcome, Outcome]:
    """How a call ends in which rank 1 leaves by way of the VAE, and the call after it."""
    vae.LEAST_PIXELS, name = ANY, "sdxl img2img"
    pipe = build(name)

    def leave(*_: Any) -> None:
        handle.remove()
        if rank() == 1:
            if way == "raise":
                raise Planted(place)
            os.kill(os.getpid(), signal.SIGKILL)

    if place == "last callback":
        handle = torch.nn.Linear(1, 1).register_forward_pre_hook(leave)
        first = {"callback_on_step_end": callback_at(2, leave)}
    else:
        handle, first = PLACES[place][0](pipe).register_forward_pre_hook(leave), {}
    parallel = parallelize(pipe, ParallelConfig(outputs="all", timeout=timeout))
    outcome = attempt(lambda: generate(parallel, name, output_type="pt", **first))
    return outcome, attempt(lambda: generate(parallel, name, output_type="pt"))


@pytest.mark.parametrize(("ranks", "place"), [*((2, place) for place in (*PLACES, "last callback")), (3, "decoder")])
def test_an_error_on_the_way_through_the_vae_is_raised_on_all(ranks: int, place: str) -> None:
    outcomes, again = zip(*run_ranks(draw_until_rank_1_fails, ranks, place, "raise", GROUP_TIMEOUT), strict=True)
    where = PLACES[place][1] if place in PLACES else "warm-up, step 2"
    for number, outcome in enumerate(outcomes):
        assert outcome.seconds < QUICK
        if number == 1:
            assert (outcome.error, outcome.message) == ("Planted", place)
        else:
            assert (outcome.error, outcome.message) == (
                "RankError",
                f"rank 1 failed in {where}: Planted: {place}",
            )
    stock = generate(build("sdxl img2img"), "sdxl img2img", output_type="pt")
    for outcome in again:
        assert outcome.error is None, outcome
        assert torch.equal(outcome.value, again[0].value)
        assert relative_difference(outcome.value, stock) < 1e-4


@pytest.mark.parametrize("place", ["decoder", "before the decoder"])
def test_a_rank_that_dies_on_the_way_through_the_vae(place: str) -> None:
    outcome, again = run_ranks(draw_until_rank_1_fails, 2, place, "die", SOON, may_die=[1])[0]
    assert outcome.error == again.error == "RankError"
    assert "no answer from the other ranks within 5 s, or one died" in outcome.message
    assert outcome.seconds < QUICK
