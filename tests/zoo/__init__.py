"""Tiny random specimens of the guided pipelines of diffusers, one module a family; nothing of hybridiff."""

from __future__ import annotations

import importlib
import pkgutil

from zoo.specimen import Specimen, run

__all__ = ["ZOO", "Specimen", "run"]


def _all_specimens() -> dict[str, Specimen]:
    modules = [importlib.import_module(f"zoo.{found.name}") for found in pkgutil.iter_modules(__path__)]
    specimens = [specimen for module in modules for specimen in getattr(module, "SPECIMENS", ())]
    by_name = {specimen.name: specimen for specimen in specimens}
    assert len(by_name) == len(specimens), "two specimens of one name"
    return by_name


ZOO: dict[str, Specimen] = _all_specimens()
"""All specimens by name."""
