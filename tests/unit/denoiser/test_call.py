from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.denoiser.adapters.sd3 import SD3Adapter
from hybridiff.denoiser.adapters.unet import UNetAdapter
from hybridiff.denoiser.call import DenoiserCall, bind_arguments, take_rows
from support.pipelines import build, denoiser_of

UNET, SD3 = UNetAdapter(), SD3Adapter()


def rows(count: int) -> torch.Tensor:
    return torch.arange(float(count)).view(count, 1)


@given(count=st.integers(2, 9), data=st.data())
def test_taking_rows_cuts_every_tensor_of_the_batch_and_nothing_else(count: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, count - 1))
    wanted = slice(start, data.draw(st.integers(start + 1, count)))
    other = torch.zeros(count + 1, 2)
    value = {"deep": [rows(count), (rows(count), None, "text")], "scalar": torch.tensor(7.0), "other": other}
    taken = take_rows(value, count, wanted)
    assert torch.equal(taken["deep"][0], rows(count)[wanted])
    assert torch.equal(taken["deep"][1][0], rows(count)[wanted])
    assert taken["deep"][1][1:] == (None, "text")
    assert taken["scalar"] is value["scalar"]
    assert taken["other"] is other
    assert torch.equal(value["deep"][0], rows(count))  # the caller's own are left alone


def evaluation(forward: Callable[..., Any], adapter: Any = UNET, **arguments: Any) -> DenoiserCall:
    return DenoiserCall(adapter, torch.nn.Identity(), forward, arguments)


def test_an_evaluation_runs_some_rows_with_their_own_arguments() -> None:
    seen: dict[str, Any] = {}

    def forward(**arguments: Any) -> tuple[torch.Tensor]:
        seen.update(arguments)
        return (arguments["sample"][:, :3],)

    sample = torch.randn(4, 9, 8, 6)
    call = evaluation(forward, sample=sample, timestep=torch.tensor(5), encoder_hidden_states=rows(4))
    assert call.rows == 4
    assert torch.equal(call.run(slice(1, 3)), sample[1:3, :3])
    assert torch.equal(seen["encoder_hidden_states"], rows(4)[1:3])
    assert seen["timestep"].item() == 5
    assert seen["return_dict"] is False
    assert torch.equal(call.run(), sample[:, :3])


@pytest.mark.parametrize("timestep", [5, 5.0, torch.tensor(5), torch.full((4,), 5.0)], ids=repr)
def test_the_timestep_of_a_call_in_whatever_form(timestep: Any) -> None:
    assert evaluation(dict, timestep=timestep).timestep == 5.0


@pytest.mark.parametrize(
    ("adapter", "output"), [(UNET, UNet2DConditionOutput), (SD3, Transformer2DModelOutput)], ids=["unet", "sd3"]
)
def test_a_prediction_comes_back_in_the_form_that_was_asked_for(adapter: Any, output: type) -> None:
    prediction = rows(2)
    asked = {adapter.sample: rows(2)}

    def forward(sample: Any = None, hidden_states: Any = None, return_dict: bool = True) -> None:
        pass

    wrapped = evaluation(forward, adapter, **asked, return_dict=True).wrap(prediction)
    assert isinstance(wrapped, output)
    assert wrapped.sample is prediction  # type: ignore[attr-defined]
    assert isinstance(evaluation(forward, adapter, **asked).wrap(prediction), output)
    assert evaluation(forward, adapter, **asked, return_dict=False).wrap(prediction) == (prediction,)


def test_arguments_are_bound_by_the_network_s_own_names() -> None:
    unet = denoiser_of(build("sdxl two levels"))
    bound = bind_arguments(unet.forward, (rows(2), 3), {"encoder_hidden_states": rows(2), "return_dict": False})
    assert list(bound) == ["sample", "timestep", "encoder_hidden_states", "return_dict"]
