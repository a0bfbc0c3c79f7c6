"""Weights on the CPU are pages of their files, which all processes of a machine share; unless they are cast."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from hybridiff import load_pipeline

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")


def mapped_files() -> list[tuple[range, str]]:
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return [
        (range(*(int(end, 16) for end in line[0].split("-"))), line[5]) for line in lines if line[5:] and "/" in line[5]
    ]


NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def mapped_networks(dtype: torch.dtype) -> list[str]:
    """Networks of an embedded model, stored in float16, of which all weights are mapped."""
    pipe, files = load_pipeline("tiny-sdxl", dtype=dtype), mapped_files()
    return [
        name
        for name in NETWORKS
        if all(
            any(weight.data_ptr() in span and f"/{name}/" in file for span, file in files)
            for weight in getattr(pipe, name).parameters()
        )
    ]


def test_weights_of_the_dtype_of_their_file_are_mapped() -> None:
    assert mapped_networks(torch.float16) == list(NETWORKS)


def test_weights_that_are_cast_are_copies() -> None:
    assert mapped_networks(torch.float32) == []
