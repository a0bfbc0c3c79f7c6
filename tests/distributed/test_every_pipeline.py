"""Every pipeline of the zoo on two ranks, one pair for all: its simulation in one process, bit for bit.

`make pipelines` runs all of them and writes what was found into docs/pipelines.md; by default the usual ones run, and
must show what stands there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hybridiff import RunReport
from support.every_pipeline import (
    REFUSED,
    TREATED,
    Generated,
    Shared,
    difference,
    every,
    made,
    most_difference,
    refusal,
    share,
)
from support.jobs import told_in
from support.pipelines_page import PAGE, Facts, read_rows, title, with_table
from support.pipelines_page import REFUSED as IS_REFUSED
from support.ranks import Ranks
from zoo import ZOO

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Iterator[dict[str, Facts]]:
    """Facts of the specimens that were tried, which become the page's where that is asked for."""
    facts: dict[str, Facts] = {}
    yield facts
    if request.config.getoption("write_pipelines"):
        assert facts.keys() == ZOO.keys(), "the page is of all specimens, each of which has to pass"
        PAGE.write_text(with_table(PAGE.read_text(), facts))


@every(TREATED)
def test_two_ranks(name: str, pair: Ranks, found: dict[str, Facts], pytestconfig: pytest.Config) -> None:
    """The unmodified pipeline, their simulation bit for bit, and what the page says; `detach` leaves nothing."""
    ranks: list[Shared] = pair.run(share_all, name)
    simulated = made(name).simulated
    for rank in ranks:
        assert max(difference(name, generated) for generated in rank.cfg) <= most_difference(name)
        for own, expected in zip(runs(rank), runs(simulated), strict=True):
            assert torch.equal(own.result, expected.result)
            assert told_in(own.report.to_dict()) == told_in(expected.report.to_dict())
        assert torch.equal(rank.after, made(name).alone)
        assert rank.traces == made(name).traces
    facts = facts_of(name, ranks)
    if not pytestconfig.getoption("write_pipelines"):
        assert read_rows(PAGE.read_text())[title(name)][:-1] == facts.told
    found[name] = facts


@every(REFUSED)
def test_two_ranks_refuse(name: str, pair: Ranks, found: dict[str, Facts]) -> None:
    assert all(sentence.startswith(REFUSED[name]) for sentence in pair.run(refuse, name))
    found[name] = IS_REFUSED


def share_all(name: str) -> Shared:
    return share(name, outputs="all")


def refuse(name: str) -> str:
    return refusal(name, outputs="all")


def runs(shared: Shared) -> list[Generated]:
    return [*shared.cfg, shared.cached, *([shared.reuse] if shared.reuse else [])]


def facts_of(name: str, ranks: list[Shared]) -> Facts:
    first = ranks[0]
    return Facts(
        layout=layout_of(first.cfg[1].report),
        cfg=rows_of(first.cfg[1].report),
        cached="yes" if "cached" in first.cached.report.kinds else "no",
        reuse="yes" if first.reuse is not None and "reuse" in first.reuse.report.kinds else "no",
        difference=max(difference(name, generated) for rank in ranks for generated in rank.cfg),
    )


def layout_of(report: RunReport) -> str:
    if report.branches == 1:
        return "1 branch"
    if report.layout is None:
        return f"{report.branches} branches"
    in_turn = "" if report.layout.calls > 1 or report.layout.order[0] == 0 else ", conditional first"
    calls = "1 call" if report.layout.calls == 1 else f"{report.layout.calls} calls"
    return f"{report.branches} branches in {calls}{in_turn}"


def rows_of(report: RunReport) -> str:
    if report.partition is None:
        return "all on every rank"
    return f"{report.partition.largest} of {report.partition.rows} rows"
