"""The same scene with every embedded model on one device and on several: how fast, and how alike."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from ..arguments import MOST_STEPS
from ..config import ParallelConfig
from ..models.tiny import EMBEDDED, GUIDANCE
from ..utils.tables import align
from .flags import flag, number, setting
from .options import WHAT, WHERE, Device, Dtype

if TYPE_CHECKING:
    from ..evaluation.timing.turns import EngineSet
    from ..launch.protocol import Generation

PROMPT = "a large red ring at the left on a white background"
IMAGES = 4
"""Generated at once, so that the embedded models, which are small, keep a core busy."""
WARM_UP_STEPS = 4


class DemoRun(NamedTuple):
    """One way to generate the scene: a strategy on a number of ranks."""

    strategy: str
    devices: int


RUNS = (DemoRun("serial", 1), DemoRun("hybrid", 1), DemoRun("cfg", 2), DemoRun("published", 2), DemoRun("hybrid", 2))
"""The first is the reference of the others. On one device `hybrid` shows what is saved without adding a device."""


class DemoRow(NamedTuple):
    """What one way gave for one model: median seconds of a call, fidelity to the first way in dB, a sheet of images."""

    model: str
    run: DemoRun
    seconds: float
    speed_up: float
    psnr: float
    path: Path


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Generate the same scene with the embedded models on one device and on two."""

    output: Annotated[str, flag(WHAT, "where images, reports and curves go", "FOLDER")] = "out/demo"
    repeats: Annotated[int, number(WHAT, "timed runs of each way", least=1, most=1000)] = 3
    num_inference_steps: Annotated[int, number(WHAT, "denoising steps", least=1, most=MOST_STEPS)] = 50
    device: Device = "cpu"
    dtype: Dtype = None
    timeout: Annotated[float, setting(WHERE, "timeout", "SECONDS")] = ParallelConfig.timeout

    def run(self) -> None:
        """Generate, write and tell."""
        from .output import Output

        folder = Path(self.output).expanduser()
        Output(folder, "image", ".png").prepare()
        print(f'"{PROMPT}", {self.num_inference_steps} steps, {self.device}')
        machine = {"device": self.device, "dtype": self.dtype, "timeout": self.timeout}
        rows = list(run_demo(folder, self.num_inference_steps, self.repeats, **machine))
        print(f"\n{format_table(rows)}\n")
        print("images; the report (.json) and the discrepancy curve (-discrepancy.png) lie beside each:")
        for row in rows:
            print(f"  {row.path}")


def run_demo(folder: Path, steps: int, repeats: int, **machine: Any) -> Iterator[DemoRow]:
    """Generate the scene in every way with every embedded model; the rows of the table as they come.

    The ways take turns after one short warm-up each; see `EngineSet`.
    """
    from ..evaluation.timing.turns import EngineSet, take_turns

    for model in EMBEDDED:
        _tell(f"{model}: starting {sum(run.devices for run in RUNS)} ranks")
        ways = {run: (run.devices, ParallelConfig(strategy=run.strategy)) for run in RUNS}
        with EngineSet(model, ways, **machine) as engines:
            for run in RUNS:
                _generate(engines, run, model, WARM_UP_STEPS)

            def tell(run: DemoRun, repeat: int, model: str = model) -> None:
                _tell(f"{model}: {run.strategy} on {run.devices}, {repeat + 1} of {repeats}")

            works = {run: partial(_generate, engines, run, model, steps) for run in RUNS}
            generations = take_turns(works, repeats, tell)
        yield from _rows(model, generations, folder)


def format_table(rows: Sequence[DemoRow]) -> str:
    """The rows as text with aligned columns."""
    cells = [("model", "strategy", "devices", "seconds", "speed-up", "PSNR against the first")]
    for row in rows:
        likeness = "identical" if row.psnr == float("inf") else f"{row.psnr:.1f} dB"
        numbers = str(row.run.devices), f"{row.seconds:.2f}", f"{row.speed_up:.2f}x"
        cells.append((row.model, row.run.strategy, *numbers, "-" if row.run == RUNS[0] else likeness))
    return align(cells, words=2)


def _generate(engines: "EngineSet[DemoRun]", run: DemoRun, model: str, steps: int) -> "Generation":
    return engines.generate(
        run, PROMPT, seed=0, num_inference_steps=steps, num_images_per_prompt=IMAGES, guidance_scale=GUIDANCE[model]
    )


def _rows(model: str, generations: "dict[DemoRun, list[Generation]]", folder: Path) -> Iterator[DemoRow]:
    import numpy as np

    from ..evaluation.metrics import psnr
    from ..evaluation.timing.turns import Spread
    from .output import Output

    seconds = {run: Spread.of([each.report.seconds for each in results]).median for run, results in generations.items()}
    pixels = {run: np.stack(results[0].images) for run, results in generations.items()}
    for run, results in generations.items():
        facts = {"model": model, "prompt": PROMPT, "settings": {"repeats": len(results)}}
        paths = Output(folder, f"{model}-{run.strategy}-{run.devices}", ".png").write(results[0], facts)
        speed_up, likeness = seconds[RUNS[0]] / seconds[run], psnr(pixels[run], pixels[RUNS[0]])
        yield DemoRow(model, run, seconds[run], speed_up, likeness, paths[IMAGES])


def _tell(what: str) -> None:
    print(what, file=sys.stderr)
