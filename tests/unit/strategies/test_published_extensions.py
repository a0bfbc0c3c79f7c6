"""`published` on more than two ranks, all played in this process: pipelines side by side, stages within each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, PublishedSettings, UsageError, parallelize
from hybridiff.strategies.published.layout import PipelineLayout
from support.by_hand import Inputs, TransformerByHand, level_split, transformer_inputs
from support.jobs import Generated, generate_parallel
from support.pipelines import build, denoiser_of, generate
from support.schedules import capped, guidance_until

STEPS, TAU1, PARALLEL_STEPS = 10, 3, 4
PROMPTS = ["a red ring", "two blue cubes", "a green cone", "a grey ball"]


def simulated(name: str, devices: int, changes: dict[str, Any], extension: str | None = None, **rest: Any) -> Generated:
    config = capped(STEPS, TAU1, PARALLEL_STEPS, rule={"extension": extension})
    changes = {"num_inference_steps": STEPS} | changes
    return generate_parallel(name, changes, simulate=True, devices=devices, **config, **rest)[0]


def images(numbers: range) -> dict[str, Any]:
    """Arguments that generate some images, each the same whoever is in its batch."""
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    prompts = [PROMPTS[number] for number in numbers]
    return {"prompt": prompts, "negative_prompt": ["blurred"] * len(prompts), "generator": generators}


def embedded_images(numbers: range) -> dict[str, Any]:
    """The same for SD3, whose text encoders round otherwise in a batch: with made-up texts."""
    names: dict[str, tuple[int, ...]] = {"prompt_embeds": (5, 32), "negative_prompt_embeds": (5, 32)}
    names |= {"pooled_prompt_embeds": (32,), "negative_pooled_prompt_embeds": (32,)}
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    texts = [{name: torch.randn(shape, generator=each) for name, shape in names.items()} for each in generators]
    stacked = {name: torch.stack([text[name] for text in texts]) for name in names}
    return stacked | {"prompt": None, "negative_prompt": None, "generator": generators}


@pytest.mark.parametrize(("ranks", "count"), [(2, 1), (4, 1), (4, 2), (6, 3), (8, 1), (8, 2), (8, 4)])
def test_each_stage_of_each_pipeline_has_one_rank(ranks: int, count: int) -> None:
    layout = PipelineLayout(ranks, count)
    places = [(layout.pipeline(rank), layout.stage(rank)) for rank in range(ranks)]
    assert sorted(places) == [(pipeline, stage) for pipeline in range(count) for stage in range(ranks // count)]
    assert [places[rank] for rank in layout.outer_ranks] == [(pipeline, 0) for pipeline in range(count)]
    for rank in range(ranks):
        assert (layout.stage(rank) < layout.replicas) == (rank >= ranks // 2)  # the branch of its full steps
        for other, boundary in layout.neighbors(rank).items():
            assert sorted((places[rank][1], places[other][1])) == [boundary, boundary + 1]
            assert layout.neighbors(other)[rank] == boundary
    told = sum(len(layout.neighbors(rank)) for rank in range(ranks))
    assert told == 2 * count * (ranks // count - 1)


@pytest.mark.parametrize(
    ("extension", "ranks", "batch", "pipelines"),
    [
        (None, 4, 1, 1),
        (None, 4, 2, 2),
        (None, 4, 3, 1),
        (None, 4, 6, 2),
        (None, 6, 3, 3),
        (None, 8, 2, 2),
        ("layers", 4, 2, 1),
        ("batch", 4, 4, 2),
        ("batch", 2, 1, 1),
        ("layers", 2, 1, 1),
    ],
)
def test_how_many_pipelines_there_are(extension: str | None, ranks: int, batch: int, pipelines: int) -> None:
    assert PipelineLayout.choose(extension, ranks, batch) == PipelineLayout(ranks, pipelines)


def test_images_that_pairs_cannot_share_evenly() -> None:
    sentence = "3 images cannot be dealt out evenly to 2 pairs of ranks; generate a multiple of 2 at a time, or use "
    with pytest.raises(UsageError, match=sentence):
        simulated("sd3", 4, images(range(3)), "batch")


def test_an_unknown_extension() -> None:
    with pytest.raises(UsageError, match="extension"):
        PublishedSettings(extension="pairs")


def test_the_extension_is_no_part_of_the_rule() -> None:
    """So it does not count as a rule given by hand, which would be taken as it is."""
    changes = {"num_inference_steps": 2}
    config: dict[str, Any] = {"strategy": "published", "published": PublishedSettings(extension="layers"), "devices": 4}
    assert generate_parallel("sdxl", changes, simulate=True, **config)[0].kinds == "ff"


@pytest.mark.parametrize(("name", "ranks"), [("sd15", 4), ("sd3", 4), ("sd3", 8)])
def test_each_pair_generates_what_two_ranks_do(name: str, ranks: int) -> None:
    """Where the schedule is the same: an image alone on two ranks, bit for bit."""
    changes = images if name == "sd15" else embedded_images
    generated = simulated(name, ranks, changes(range(ranks // 2)))
    assert generated.kinds == "ffffppppff"
    for number in range(ranks // 2):
        alone = simulated(name, 2, changes(range(number, number + 1)))
        assert torch.equal(generated.latents[number], alone.latents[0])
    stages = generated.report["stages"]
    group = 6 + stages["outer"] + 3 * max(stages["outer"], stages["inner"])
    assert generated.report["ideal_speedup"] == pytest.approx(ranks / 2 * 20 / group)
    assert generated.report["stages"]["deeper"] == ()


def test_two_images_a_pair() -> None:
    generated = simulated("sd3", 4, embedded_images(range(4)))
    for first in (0, 2):
        pair = simulated("sd3", 2, embedded_images(range(first, first + 2)))
        assert torch.equal(generated.latents[first : first + 2], pair.latents)


class NestedSchedule:
    """Answers a generation's evaluations by the published schedule on stages within each other, by hand.

    Args:
        rings: The stages from the outer to the innermost one.
        inputs_of: The branches of an evaluation.
    """

    def __init__(self, rings: list[Any], inputs_of: Callable[..., tuple[Inputs, Inputs]]) -> None:
        self.rings, self.inputs_of = rings, inputs_of
        self.step = 0
        self.downs: list[Any] = []  # what each stage but the innermost told the next one, in the step before
        self.ups: list[Any] = []  # what each but the outer one told that around it

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        branches = self.inputs_of(*args, **kwargs)
        if TAU1 < self.step <= TAU1 + PARALLEL_STEPS:
            prediction = self.pipelined_step(*branches)
        else:
            prediction = self.full_step(*branches)
        self.step += 1
        return (prediction,)

    def full_step(self, unconditional: Inputs, conditional: Inputs) -> torch.Tensor:
        """Each stage keeps what it has of its own branch: the outer half that of the conditional one."""
        made = [self.whole(branch) for branch in (unconditional, conditional)]
        half = len(self.rings) // 2
        owner = [int(stage < half) for stage in range(len(self.rings))]
        self.downs = [made[owner[stage]][1][stage] for stage in range(len(self.rings) - 1)]
        self.ups = [made[owner[stage]][2][stage - 1] for stage in range(1, len(self.rings))]
        return torch.cat([prediction for prediction, _, _ in made])

    def whole(self, inputs: Inputs) -> tuple[torch.Tensor, list[Any], list[Any]]:
        """The prediction, the boundaries inwards and those outwards."""
        hidden: Any = None
        kept: list[Any] = []
        downs: list[Any] = []
        ups: list[Any] = []
        for ring in self.rings[:-1]:
            hidden, skips = ring.begin(inputs, hidden)
            kept.append(skips)
            downs.append(hidden)
        hidden = self.rings[-1].middle(inputs, hidden)
        for ring, skips in zip(self.rings[-2::-1], kept[::-1], strict=True):
            ups.insert(0, hidden)
            hidden = ring.end(inputs, hidden, skips)
        return hidden, downs, ups

    def pipelined_step(self, unconditional: Inputs, conditional: Inputs) -> torch.Tensor:
        downs, ups, half = list(self.downs), list(self.ups), len(self.rings) // 2
        for stage, ring in enumerate(self.rings):
            inputs = conditional if stage < half else unconditional
            given = self.downs[stage - 1] if stage else None
            if ring is self.rings[-1]:
                ups[stage - 1] = ring.middle(inputs, given)
                continue
            downs[stage], skips = ring.begin(inputs, given)
            made = ring.end(inputs, self.ups[stage], skips)
            if stage:
                ups[stage - 1] = made
            else:
                prediction = made
        self.downs, self.ups = downs, ups
        return torch.cat([prediction, prediction])


class TransformerRing:
    """A stage of an SD3 transformer: its blocks before and behind the stage within."""

    def __init__(self, network: Any, before: range, behind: range, is_outer: bool) -> None:
        self.parts, self.before, self.behind = TransformerByHand(network, 0, 0), before, behind
        self.is_outer = is_outer

    def begin(self, inputs: Inputs, streams: Any) -> tuple[Any, None]:
        if streams is None:
            image = self.parts.network.pos_embed(inputs["sample"])
            streams = (self.parts.network.context_embedder(inputs["text"]), image)
        return self.parts.blocks(inputs, streams, self.before), None

    def middle(self, inputs: Inputs, streams: Any) -> Any:
        return self.parts.blocks(inputs, streams, self.before)

    def end(self, inputs: Inputs, streams: Any, skips: None) -> Any:
        if not self.is_outer:
            return self.parts.blocks(inputs, streams, self.behind)
        self.parts.last = self.behind.start - 1
        return self.parts.end(inputs, streams, None)


@pytest.mark.parametrize("changes", [{}, {"num_images_per_prompt": 2}], ids=["one image", "two images"])
def test_four_stages_of_a_transformer_by_hand(changes: dict[str, Any]) -> None:
    name = "sd3 deep"
    generated = simulated(name, 4, changes, "layers")
    points = [generated.report["stages"]["point"], *generated.report["stages"]["deeper"]]
    entries, exits = [-1, *(point["entry"] for point in points)], [8, *(point["exit"] for point in points)]
    pipe = build(name)
    network = denoiser_of(pipe)
    rings = [
        TransformerRing(
            network,
            range(entries[stage] + 1, entries[stage + 1] + 1),
            range(exits[stage + 1] + 1, exits[stage] + 1),
            stage == 0,
        )
        for stage in range(3)
    ]
    rings.append(TransformerRing(network, range(entries[3] + 1, exits[3] + 1), range(0), False))
    assert sum(len(ring.before) + len(ring.behind) for ring in rings) == 9
    network.forward = schedule = NestedSchedule(rings, transformer_inputs)
    expected = generate(pipe, name, num_inference_steps=STEPS, **changes)
    assert schedule.step == STEPS
    assert torch.equal(generated.latents, expected)


@pytest.mark.parametrize(("name", "ranks", "batch"), [("sdxl", 4, 1), ("sd15", 6, 1), ("sdxl", 8, 2)])
def test_stages_within_each_other(name: str, ranks: int, batch: int) -> None:
    generated = simulated(name, ranks, images(range(batch)))
    report = generated.report
    assert generated.kinds == "ffffppppff"
    stages = ranks // batch
    assert len(report["stages"]["deeper"]) == stages - 2
    group = 6 + report["stages"]["outer"] + 3 * max(report["stages"]["outer"], report["stages"]["inner"])
    assert report["ideal_speedup"] == pytest.approx(batch * 20 / group)
    assert report["partition"]["shards"] == 1
    note, cap = report["notes"]
    assert "tau_cap set tau1 = 3" in cap
    assert note == (
        f"the network is cut into {stages} stages: full steps take as long as on {2 * batch} ranks, as {stages // 2} "
        "ranks evaluate the same rows"
    )


def test_full_steps_are_those_of_condition_based_partitioning() -> None:
    """Where no step is pipelined, as guidance ends before."""
    changes = guidance_until("sd15", 2)
    generated = simulated("sd15", 4, changes, "layers")
    alone = generate_parallel("sd15", changes | {"num_inference_steps": STEPS}, simulate=True, strategy="cfg")[0]
    assert torch.equal(generated.latents, alone.latents)
    assert generated.kinds == "f" * STEPS


@pytest.mark.parametrize("last", [3, 5, 7])
def test_guidance_that_ends_in_the_parallel_phase(last: int) -> None:
    changes = guidance_until("sd15", last) | {"num_images_per_prompt": 2}
    generated = simulated("sd15", 8, changes)
    assert generated.kinds == ("ffff" + "p" * (last - 3)).ljust(10, "f")


def test_a_network_too_small() -> None:
    with pytest.raises(UsageError, match="too small to be cut into 4 stages; use fewer ranks, or more images"):
        simulated("sd3", 4, {})


def test_counted_work_chooses_the_stages() -> None:
    """Whatever a calibration says of two."""
    pipe = build("sdxl")
    network = denoiser_of(pipe)
    generated = simulated("sdxl", 4, {})
    index = level_split(network, 1)
    config = capped(STEPS, TAU1, PARALLEL_STEPS, split_point=index, simulate=True, devices=4)
    with parallelize(pipe, ParallelConfig(**config)) as parallel:
        assert torch.equal(generate(parallel, "sdxl", num_inference_steps=STEPS), generated.latents)
