"""What the host computes is computed there, whatever default device a user has set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff.denoiser.decoder import decoder_gain
from hybridiff.distributed.readback import Readback
from hybridiff.numerics.extrapolation import smoothing_weights
from hybridiff.numerics.sensitivity import measure_sensitivity
from hybridiff.schedule.gaps import GapPlan
from hybridiff.sharding.rows import rows_of_part
from support.pipelines import SCHEDULERS, build
from support.shards import ranks

VALUES, PIPE, SCHEDULER = torch.tensor([0.5, 2.0]), build("sd3"), SCHEDULERS["dpmsolver++"]()
SCHEDULER.set_timesteps(7)

COMPUTED: dict[str, Callable[[], Any]] = {
    "readback": lambda: Readback(VALUES).wait(1.0),
    "weights": lambda: smoothing_weights((0.0, 1.0, 3.0, 4.25), 5.0),
    "sensitivity": lambda: measure_sensitivity(SCHEDULER, 7),
    "gaps": lambda: GapPlan(lambda step, distance: 0.1 * distance, 9, 4).room(1, 1.0, 0.5),
    "gain": lambda: decoder_gain(PIPE),
    "rows": lambda: [rows_of_part(37, 4, rank) for rank in ranks(4)],
}


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_it_is_the_same(compute: Callable[[], Any]) -> None:
    with torch.device("meta"):  # on which nothing can be read
        found = compute()
    smoothing_weights.cache_clear()
    assert found == compute()
