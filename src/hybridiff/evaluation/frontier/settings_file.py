"""Settings to compare, from a file that the user wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...config import ParallelConfig, PublishedSettings
from ...distributed.placement import DEFAULT_RANKS
from ...errors import UsageError
from ...models.schedulers import SCHEDULERS
from ...utils.names import require_known
from ..strategy_spec import check_config
from .settings import Setting


def read_settings(path: Path) -> list[Setting]:
    """Settings from a JSON file: a list of objects with method, label, config (of `ParallelConfig`) and maybe steps.

    Raises:
        UsageError: the file cannot be read, an entry is malformed, or two have one name; names it.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the settings {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"the settings {path} are malformed: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{path} must hold a list of settings")
    settings = [_setting(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, start=1)]
    check_names(settings, str(path))
    return settings


def check_names(settings: Iterable[Setting], where: str) -> None:
    """Refuse two settings of one name: the row of one would take the place of the other's.

    Raises:
        UsageError: with the name.
    """
    for (method, label), count in Counter(setting.name for setting in settings).items():
        if count > 1:
            raise UsageError(
                f"{where}: {count} settings have method {method!r} and label {label!r}; give each a label of its own"
            )


def _setting(entry: Any, where: str) -> Setting:
    try:
        config = {"strategy": "hybrid", **entry["config"]}
        config["published"] = PublishedSettings(**config.get("published", {}))
        steps = entry.get("steps")
        if steps is not None and (type(steps) is not int or steps < 1):
            raise UsageError(f"steps must be an integer of at least 1, got {steps!r}")
        if (scheduler := entry.get("scheduler")) is not None:
            require_known("scheduler", scheduler, SCHEDULERS)
        check_config(made := ParallelConfig(**config), made.devices or DEFAULT_RANKS)
        return Setting(str(entry["method"]), str(entry["label"]), made, steps, scheduler)
    except (TypeError, AttributeError, KeyError) as error:
        raise UsageError(
            f"{where}: method, label and config are needed, with fields of ParallelConfig ({error})"
        ) from error
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
