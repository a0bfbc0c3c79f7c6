"""What holds for a model: the user's word before the calibration's before the general thresholds."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from diffusers.configuration_utils import FrozenDict

from hybridiff import ParallelConfig, PublishedSettings, UsageError
from hybridiff.denoiser.adapters import ADAPTERS, DenoiserAdapter
from hybridiff.denoiser.adapters.sd3 import SD3Adapter
from hybridiff.denoiser.adapters.unet import UNetAdapter
from hybridiff.models import tiny
from hybridiff.schedule.calibration import Calibration
from hybridiff.schedule.kinds import StepKind
from hybridiff.schedule.presets import GuidedSettings, ModelSettings, model_name, scaled_steps
from support.calibrations import ENTRY, REUSE_ABOVE, calibration_file, entry_with

BANDS = replace(ENTRY, bands=(*ENTRY.bands, REUSE_ABOVE))


def pipeline(name: str | None = "someone/a-model") -> Any:
    """As much of a pipeline as is looked at."""
    return SimpleNamespace(config=FrozenDict({} if name is None else {"_name_or_path": name}))


def find(calibration: Any = None, name: str | None = "someone/a-model") -> ModelSettings:
    return ModelSettings.find(pipeline(name), UNetAdapter(), calibration)


def choose(entry: Any = None, steps: int = 20, **config: Any) -> GuidedSettings:
    return GuidedSettings.choose(ParallelConfig(strategy="hybrid", **config), entry, steps)


def test_the_published_settings_of_the_families() -> None:
    assert UNetAdapter().published == PublishedSettings(12, 4e-4, 5, 15)
    assert SD3Adapter().published == PublishedSettings(15, 5e-4, 5, 40)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_every_preset_is_legal_at_fifty_steps(adapter: DenoiserAdapter) -> None:
    window, _, length, cap = adapter.published.values
    assert cap >= window
    assert cap + length < 50


@pytest.mark.parametrize("name", [None, "", "someone/my-sdxl-checkpoint", "/models/finetuned"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_presets_go_by_the_family(name: str | None, adapter: DenoiserAdapter) -> None:
    found = ModelSettings.find(pipeline(name), adapter)
    assert (found.published, found.reuse_share) == (adapter.published, adapter.reuse_share)
    assert found.calibration is None


@pytest.mark.parametrize(
    ("name", "model"),
    [(None, ""), ("", ""), ("someone/a-model", "a-model"), ("/data/models/another/", "another"), ("tiny", "tiny")],
)
def test_the_name_of_a_model(name: str | None, model: str) -> None:
    assert model_name(pipeline(name)) == model
    assert find(name=name).model == model


@pytest.mark.parametrize(
    ("fifty", "steps", "least", "scaled"), [(6, 50, 1, 6), (6, 20, 1, 2), (6, 3, 2, 2), (6, 100, 1, 12), (3, 4, 1, 1)]
)
def test_steps_for_other_numbers_of_steps(fifty: int, steps: int, least: int, scaled: int) -> None:
    assert scaled_steps(fifty, steps, least) == scaled


def test_general_thresholds_without_a_calibration() -> None:
    assert choose(steps=50) == GuidedSettings(StepKind.CACHED, 0.085, longest=6, fidelity=45.0)
    assert choose(steps=50, step_kind="reuse") == GuidedSettings(StepKind.REUSE, 0.085, 6)


def test_the_calibration_beats_the_general_thresholds() -> None:
    entry = entry_with("reuse")
    assert choose(entry) == GuidedSettings(StepKind.REUSE, pytest.approx(0.3), 2)
    assert choose(entry, quality="draft").tolerance == 0.4
    assert choose(entry, quality=0.875).tolerance == pytest.approx(0.1)


def test_the_user_beats_the_calibration() -> None:
    asked = choose(entry_with("reuse"), step_kind="cached", tolerance=0.7)
    assert asked == GuidedSettings(StepKind.CACHED, 0.7, 2)
    assert choose(tolerance=0.0) == GuidedSettings(StepKind.CACHED, 0.0, 2)


def test_high_qualities_may_have_steps_of_another_kind() -> None:
    kinds = [choose(BANDS, quality=quality).step_kind for quality in (0.5, 0.79, 0.8, 0.95, "exact")]
    assert kinds[:4] == [StepKind.CACHED, StepKind.CACHED, StepKind.REUSE, StepKind.REUSE]
    assert kinds[4] is StepKind.CACHED, "nothing has to be prepared"
    assert choose(BANDS, quality=0.875).tolerance == pytest.approx(0.15)
    assert choose(BANDS, quality=0.875, step_kind="cached").tolerance == pytest.approx(0.1), "its own tolerances"
    assert choose(BANDS, quality=0.5, step_kind="reuse").tolerance == pytest.approx(0.45)
    assert choose(ENTRY, quality=0.5, step_kind="reuse").tolerance == pytest.approx(0.3), "the nearest there is"


@pytest.mark.parametrize(("steps", "longest"), [(3, 2), (10, 2), (20, 2), (28, 3), (50, 6), (100, 12)])
def test_the_longest_gap_is_given_for_fifty_steps(steps: int, longest: int) -> None:
    assert choose(steps=steps).longest == choose(ENTRY, steps).longest == longest


@pytest.mark.parametrize("entry", [None, ENTRY, BANDS], ids=["general", "one band", "two bands"])
def test_a_higher_quality_never_has_a_larger_tolerance(entry: Any) -> None:
    tolerances = [choose(entry, quality=number / 100, step_kind="cached").tolerance for number in range(100)]
    assert all(lower >= higher > 0 for lower, higher in itertools.pairwise(tolerances))


def test_whether_some_call_may_have_reuse_steps() -> None:
    def may(calibration: Any = None, **config: Any) -> bool:
        return find(calibration).may_reuse(ParallelConfig(strategy="hybrid", **config))

    one, two = Calibration("a-model", (ENTRY,)), Calibration("a-model", (BANDS,))
    assert (may(), may(step_kind="cached"), may(step_kind="reuse"), may(one)) == (False, False, True, False)
    assert [may(two, quality=quality) for quality in (0.5, 0.95, "exact")] == [False, True, False]
    splits = Calibration("a-model", (), {"reuse": 3})
    assert (may(splits), may(splits, step_kind="reuse")) == (False, True)
    # Another scheduler may be put in later, for which the calibration has another entry.
    other = Calibration("a-model", (ENTRY, entry_with("reuse", scheduler="EulerDiscreteScheduler")))
    assert (may(other), may(other, step_kind="cached")) == (True, False)


def test_where_a_calibration_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = Calibration("someone/a-model", (ENTRY,))
    path = calibration_file(tmp_path)["calibration"]
    assert find(calibration).calibration is calibration
    assert find(path).calibration == find(Path(path)).calibration == calibration
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/calibration.json").calibration == calibration


@pytest.mark.parametrize("name", tiny.EMBEDDED)
def test_embedded_models_bring_theirs(name: str, tmp_path: Path) -> None:
    own = Calibration.read(tiny.folder(name) / "calibration.json")
    assert own.model == name
    assert find(name=str(tiny.folder(name))).calibration == own
    assert find(name=f"/anywhere/{name}").calibration is None, "another model may be called alike"
    mine = calibration_file(tmp_path)["calibration"]
    assert find(mine, name=name).calibration == Calibration("someone/a-model", (ENTRY,)), "the user's comes first"


@pytest.mark.parametrize("name", ["", "someone/a-model", "..", "tiny", None])
def test_models_by_other_names_bring_none(name: str | None) -> None:
    assert find(name=name).calibration is None


def test_what_cannot_be_a_calibration() -> None:
    with pytest.raises(UsageError, match=r"cannot read the calibration /no/such/file.json: No such file"):
        find("/no/such/file.json")
    with pytest.raises(UsageError, match=r"calibration must be the path of a file or a Calibration, got \['a.json'\]"):
        find(["a.json"])


def test_the_entry_of_a_call() -> None:
    euler = replace(ENTRY, scheduler="EulerDiscreteScheduler", num_inference_steps=30)
    settings = find(Calibration("a-model", (ENTRY, euler)))
    assert settings.entry(diffusers.DDIMScheduler(), 30) is ENTRY
    assert settings.entry(diffusers.EulerDiscreteScheduler(), 20) is euler
    assert find().entry(diffusers.DDIMScheduler(), 30) is None
    assert find(Calibration("a-model", (), {"reuse": 3})).entry(diffusers.DDIMScheduler(), 30) is None


def test_a_calibration_says_where_networks_are_split() -> None:
    settings = find(Calibration("a-model", (), {"reuse": 3, "pipelined": 0}))
    assert [settings.split_point(kind) for kind in (StepKind.REUSE, StepKind.PIPELINED)] == [3, 0]
    assert find(Calibration("a-model", (ENTRY,))).split_point(StepKind.REUSE) is None
    assert find().split_point(StepKind.REUSE) is None


def test_what_ranks_compare(tmp_path: Path) -> None:
    """Where the thresholds stand does not matter, only what they are; nor what the model is called."""
    path = calibration_file(tmp_path)["calibration"]
    elsewhere = tmp_path / "elsewhere.json"
    shutil.copy(path, elsewhere)
    one, same, other, none = (
        find(calibration, name).describe()
        for calibration, name in [
            (path, "someone/a-model"),
            (elsewhere, "/data/a-model"),
            (Calibration("a-model", (replace(ENTRY, guidance_scale=0.5),)), "someone/a-model"),
            (None, "someone/a-model"),
        ]
    )
    assert one == same
    assert len({one, other, none}) == 3
    assert ModelSettings.find(pipeline(), SD3Adapter()).describe() != none


def test_it_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = calibration_file(tmp_path)["calibration"]
    settings = find(path)
    Path(path).unlink()
    monkeypatch.setattr(Calibration, "read", lambda path: pytest.fail("read again"))
    config = ParallelConfig(strategy="hybrid", calibration=path)
    assert settings.entry(diffusers.DDIMScheduler(), 20) == ENTRY
    assert not settings.may_reuse(config)
    assert settings.describe()
    assert settings.split_point(StepKind.REUSE) is None
