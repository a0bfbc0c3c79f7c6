"""Every pipeline of the zoo on two simulated ranks, against the unmodified one; most of them are marked slow."""

from __future__ import annotations

import torch

from hybridiff import RunReport
from support.every_pipeline import (
    EXTRA,
    GUIDED,
    LATE,
    ON_ITS_OWN,
    REFUSED,
    SEVERAL_STEPS,
    SHARED,
    TREATED,
    USUAL,
    WHOLE,
    branches_of,
    difference,
    every,
    made,
    most_difference,
    refusal,
    treatment,
)
from support.oracles import relative_difference
from zoo import FAMILIES, ZOO


def reports(name: str) -> list[RunReport]:
    return [generated.report for generated in made(name).simulated.cfg]


@every(GUIDED)
def test_exchanged_branches_are_found_out(name: str) -> None:
    exchanged = made(name).exchanged
    assert exchanged is not None
    assert not relative_difference(exchanged, made(name).alone) <= 10 * most_difference(name)


@every(TREATED)
def test_cfg_is_the_stock_pipeline(name: str) -> None:
    for generated in made(name).simulated.cfg:
        assert difference(name, generated) <= most_difference(name)


@every(TREATED)
def test_detach_leaves_nothing(name: str) -> None:
    assert made(name).simulated.traces == made(name).traces
    assert torch.equal(made(name).simulated.after, made(name).alone)


@every(SHARED)
def test_branches_are_shared(name: str) -> None:
    specimen, branches = ZOO[name], branches_of(ZOO[name])
    for report in reports(name):
        assert report.branches == branches
        # Which say that there is nothing to partition, or that there was nothing at first.
        assert bool(report.notes) == (branches == 1 or name in LATE)
        assert sum(step.extra_evaluations for step in report.steps) > 0 if specimen.name in EXTRA else True
        if branches > 1:
            assert report.partition is not None
            assert report.partition.rows % branches == 0
            assert report.partition.largest == -(-report.partition.rows // 2)


@every(SHARED | WHOLE)
def test_cached_steps(name: str) -> None:
    steps = SEVERAL_STEPS.get(name, len(reports(name)[0].steps))
    cached = made(name).simulated.cached
    assert torch.isfinite(cached.result).all()
    assert cached.report.kinds == ({"full": steps} if name in EXTRA else {"full": steps - 1, "cached": 1})


@every(SHARED | WHOLE)
def test_reuse_steps(name: str) -> None:
    """Where the network can be split; the page says where."""
    reuse, kinds = made(name).simulated.reuse, made(name).simulated.cached.report.kinds
    if reuse is not None:
        assert torch.isfinite(reuse.result).all()
        assert reuse.report.kinds == {kind.replace("cached", "reuse"): count for kind, count in kinds.items()}


@every(WHOLE)
def test_perturbed_attention_has_whole_batches(name: str) -> None:
    for generated, report in zip(made(name).simulated.cfg, reports(name), strict=True):
        assert torch.equal(generated.result, made(name).alone)
        assert report.notes == ["images of a batch and its branches depend on each other: every rank evaluates all"]
        assert report.branches == 3
        assert report.partition is not None
        assert report.partition.is_whole
        assert report.ideal_speedup == 1.0


@every(ON_ITS_OWN)
def test_what_cannot_be_shared_every_rank_does_on_its_own(name: str) -> None:
    for generated, report in zip(made(name).simulated.cfg, reports(name), strict=True):
        assert torch.equal(generated.result, made(name).alone)
        assert report.notes[0].startswith(ON_ITS_OWN[name])
        assert report.partition is None
    cached = made(name).simulated.cached
    assert torch.equal(cached.result, made(name).alone)
    assert cached.report.kinds == {"full": len(cached.report.steps)}


@every(REFUSED)
def test_what_is_refused_leaves_the_pipeline_as_it_was(name: str) -> None:
    assert refusal(name, simulate=True, devices=2).startswith(REFUSED[name])


def test_every_family_and_every_treatment_runs_by_default() -> None:
    assert {treatment(name) for name in USUAL} == {treatment(name) for name in ZOO}
    for family in FAMILIES.values():
        assert not USUAL.isdisjoint(specimen.name for specimen in family)
