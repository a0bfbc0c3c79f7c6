"""Numbers on their way to the host: by an event that is polled against a deadline, on CPUs as on GPUs."""

from __future__ import annotations

import pytest
import torch

from hybridiff.distributed.readback import HostEvent, Readback, device_event
from hybridiff.errors import CommError
from support.events import FakeEvent


def test_values_come_once_the_event_has_happened() -> None:
    event = FakeEvent(ready_after=5)
    readback = Readback(torch.tensor([0.25, -3.5]), lambda device: event)
    assert (event.recorded, event.queries) == (1, 0)  # nothing waits until it is asked for
    assert readback.wait(timeout=60.0) == [0.25, -3.5]
    assert event.queries == 6


def test_an_event_that_never_happens_ends_at_the_deadline() -> None:
    event = FakeEvent(ready_after=None)
    with pytest.raises(CommError, match=r"^no answer from the other ranks within 0\.05 s, or one died$"):
        Readback(torch.zeros(1), lambda device: event).wait(timeout=0.05)
    assert event.queries > 1


def test_without_a_deadline_it_waits() -> None:
    assert Readback(torch.ones(1), lambda device: FakeEvent(ready_after=50)).wait(float("inf")) == [1.0]


def test_cpu_tensors_go_the_same_way() -> None:
    """Copied where they are asked for, and guarded by an event, which has always happened."""
    values = torch.tensor([1.0, 2.0])
    readback = Readback(values)
    values.zero_()  # the next message overwrites its buffers
    assert readback.wait(timeout=0.0) == [1.0, 2.0]
    event = device_event(torch.device("cpu"))
    assert isinstance(event, HostEvent)
    event.record()
    assert event.query()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool])
def test_any_dtype_becomes_numbers(dtype: torch.dtype) -> None:
    assert Readback(torch.tensor([1, 0]).to(dtype)).wait(timeout=1.0) == [1.0, 0.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_event_of_a_gpu() -> None:
    values = torch.arange(3.0, device="cuda")
    torch.cuda._sleep(2_000_000_000)  # about a second of work ahead of the copy
    with pytest.raises(CommError):
        Readback(values).wait(timeout=0.01)
    readback = Readback(values)
    values.zero_()  # behind the copy
    assert readback.wait(timeout=60.0) == [0.0, 1.0, 2.0]
