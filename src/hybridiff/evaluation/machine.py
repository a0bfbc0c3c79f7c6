"""What machine something was measured on."""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch

from .. import __version__


def describe_machine(device: str) -> dict[str, Any]:
    """The processor or the GPUs, the versions of what computes, and the date; ready for JSON.

    Args:
        device: `cpu` or `cuda`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {"device": device, "processor": _processor(), "cores": cores}
    if device == "cuda":
        facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts | versions() | {"date": date.today().isoformat()}


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"hybridiff": __version__, "diffusers": diffusers.__version__, "torch": str(torch.__version__)}
    return found | {"python": platform.python_version()}


def _processor() -> str:
    """Its name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.machine()
