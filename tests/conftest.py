from __future__ import annotations

import os

# Before torch is imported: one thread, as the ranks have, so that results can be compared bit by bit.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-pipelines", action="store_true", help="write docs/pipelines.md of what all pipelines show"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation")  # of some schedulers of diffusers


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
