from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _without_gradients(without_gradients: None) -> None:
    """Nothing here needs any."""
