"""What layers cost: work as counted by hand, and times of every part."""

from __future__ import annotations

import torch

from hybridiff.denoiser.layers import Layer, NetworkCost, measure_layers


class Network(torch.nn.Module):
    """Two layers, and a head that belongs to none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 16)
        self.second = torch.nn.Linear(16, 4, bias=False)
        self.head = torch.nn.Linear(4, 2, bias=False)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(sample)))  # type: ignore[no-any-return]


def measured(rows: int = 3) -> tuple[Network, NetworkCost]:
    network, sample = Network(), torch.zeros(rows, 8)
    layers = [Layer("first", None), Layer("second", None)]
    with torch.no_grad():
        return network, measure_layers(network, layers, lambda: network(sample), sample.device)


def test_work_is_two_operations_a_weight_and_row() -> None:
    _, cost = measured()
    assert [layer.work for layer in cost.layers] == [2 * 3 * 8 * 16, 2 * 3 * 16 * 4]
    assert cost.other_work == 2 * 3 * 4 * 2
    assert cost.work == 2 * 3 * (8 * 16 + 16 * 4 + 4 * 2)


def test_sizes_of_outputs_and_times() -> None:
    _, cost = measured()
    assert [layer.bytes for layer in cost.layers] == [3 * 16 * 4, 3 * 4 * 4]
    assert all(layer.seconds > 0 for layer in cost.layers)
    assert cost.seconds >= sum(layer.seconds for layer in cost.layers)


def test_measuring_leaves_nothing_behind() -> None:
    network, _ = measured()
    assert not any(hasattr(module, "_diffusers_hook") or "forward" in vars(module) for module in network.modules())
