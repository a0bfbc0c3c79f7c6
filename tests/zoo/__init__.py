"""Tiny random specimens of the guided pipelines of diffusers, one module a family; nothing of hybridiff."""

from __future__ import annotations

import importlib
import pkgutil

from zoo.specimen import Specimen, run

__all__ = ["FAMILIES", "ZOO", "Specimen", "run"]


def _all_families() -> dict[str, tuple[Specimen, ...]]:
    names = [found.name for found in pkgutil.iter_modules(__path__)]
    specimens = {name: getattr(importlib.import_module(f"zoo.{name}"), "SPECIMENS", ()) for name in names}
    return {name: tuple(family) for name, family in specimens.items() if family}


FAMILIES: dict[str, tuple[Specimen, ...]] = _all_families()
"""The specimens of each module."""

ZOO: dict[str, Specimen] = {specimen.name: specimen for family in FAMILIES.values() for specimen in family}
"""All specimens by name."""

assert len(ZOO) == sum(map(len, FAMILIES.values())), "two specimens of one name"
