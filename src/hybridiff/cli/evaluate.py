"""`hybridiff evaluate`: images of several strategies, what is measured of them, and a page to look at."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..arguments import MOST_IMAGES, check_known
from ..config import ParallelConfig
from ..distributed.placement import DEFAULT_RANKS, Placement, is_under_torchrun
from ..errors import UsageError
from ..utils.files import write_whole
from ..utils.prompts import Prompt
from ..utils.tables import align
from .flags import flag, number, setting
from .generate import TOGETHER
from .options import WHAT, CallOptions, command_line

CAPTIONS = "COCO's captions (.json; one for each image), or one prompt per line; the embedded models bring theirs"
STRATEGIES = "strategies to set beside serial, each NAME or NAME:SETTING=VALUE:..., such as hybrid:fidelity=50"
RANKS = "ranks of each strategy that does not say @N, and most that one may have; serial has one"
REFERENCE = "a folder of images, the ground truth of the FID"
MEASURES = "What to measure by (default: what torch and transformers have downloaded before)"
CAPTION_COUNTS = (16, 16)
"""Captions of one object, and of two, that the embedded models bring."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(CallOptions):
    """Compare the images of several strategies: fidelity, FID, fit to the prompt, and a page to look at.

    Stopped at any time, it goes on where it was: images that are there are not generated again.
    """

    prompts: Annotated[str | None, flag(WHAT, CAPTIONS, "FILE")] = None
    limit: Annotated[int | None, number(WHAT, "take the first prompts only", least=1)] = None
    images_per_prompt: Annotated[int, number(WHAT, "each with a seed of its own", least=1, most=MOST_IMAGES)] = 1
    output: Annotated[str, flag(WHAT, "images, metrics.json, metrics.md and index.html", "FOLDER")] = "out/evaluation"
    fresh: Annotated[bool, flag(WHAT, "delete the images that are in the output already", "", "--fresh")] = False
    strategies: Annotated[str, flag(TOGETHER, STRATEGIES, "A,B")] = "cfg,hybrid:fidelity=50"
    devices: Annotated[int, number(TOGETHER, RANKS, least=1, most=4096)] = DEFAULT_RANKS
    timeout: Annotated[float, setting(TOGETHER, "timeout", "SECONDS")] = ParallelConfig.timeout
    reference: Annotated[str | None, flag(MEASURES, REFERENCE, "FOLDER")] = None
    inception: Annotated[str | None, flag(MEASURES, "for the FID: inception-2015-12-05.pt", "FILE")] = None
    lpips: Annotated[str | None, flag(MEASURES, "for LPIPS: torchvision's alexnet-owt-7be5be79.pth", "FILE")] = None
    clip: Annotated[str | None, flag(MEASURES, "for the CLIP score, on this disk", "FOLDER_OR_ID")] = None
    image_reward: Annotated[str | None, flag(MEASURES, "with ImageReward.pt and med_config.json", "FOLDER")] = None

    def run(self) -> None:
        """Generate, measure, write and tell."""
        from ..evaluation.images.drawing import draw_missing
        from ..evaluation.images.gallery import Gallery
        from ..evaluation.images.measures import Measures, Weights
        from ..evaluation.images.scores import find_pictures, score
        from ..models.loading import find_model
        from .output import Output, progress_bar

        if is_under_torchrun():
            raise UsageError("hybridiff evaluate starts ranks by itself; run it without torchrun")
        prompts, configs = self.all_prompts(), self._configs()
        place = Placement.resolve(max(config.devices or 1 for config in configs.values()), self.device)
        reference = [] if self.reference is None else find_pictures(self.reference)
        folder = find_model(self.model, self.variant, self.model_config)
        call = self._call(folder)
        output = Output(Path(self.output).expanduser(), "index", ".html")
        output.prepare()
        measures = Measures.load(
            self.model, Weights(**self.given("inception", "lpips", "clip", "image_reward")), place.device
        )
        run = self._facts(folder, place, call)
        gallery = Gallery.open(output.folder, run, prompts, configs, self.fresh)
        options = self.given("device", "dtype", "scheduler", "variant") | {"timeout": self.timeout}
        with progress_bar() as show:
            draw_missing(gallery, folder, call, show, **options)
        with progress_bar() as show:
            scores = score(gallery, measures, reference, show)
        rows = [one.to_dict(measures.each) for one in scores]
        content = {"run": run, "rows": rows, "skipped": measures.skipped, "notes": measures.notes, **_made_with()}
        _write(output, content, gallery, scores)

    def all_prompts(self) -> list[Prompt]:
        """What every strategy generates: a prompt and a seed for each picture.

        Raises:
            UsageError: the file cannot be read, or there is none and the model has no captions.
        """
        from ..evaluation.images.drawing import each_picture
        from ..evaluation.workload import take_prompts
        from ..utils.captions import read_captions

        if self.prompts is None:
            prompts = take_prompts(self.model, None, "evaluation", CAPTION_COUNTS)
        else:
            prompts = read_captions(Path(self.prompts).expanduser())
        return each_picture(prompts[: self.limit], self.images_per_prompt)

    def _configs(self) -> dict[str, ParallelConfig]:
        """The strategies by their names, the one that others are compared with first."""
        from ..evaluation.strategy_spec import parse_strategies

        return parse_strategies("serial", 1) | parse_strategies(self.strategies, self.devices)

    def _call(self, folder: Any) -> dict[str, Any]:
        """The arguments of the pipeline's call."""
        from ..evaluation.workload import recommended
        from ..models.schedulers import check_scheduler

        call = recommended(self.model) | self.call_arguments()
        if folder.makes != "images":
            raise UsageError(f"{self.model} makes {folder.makes}; hybridiff evaluate compares images")
        if "output_type" in call:
            raise UsageError("--arg output_type cannot be changed here: what is compared are the images themselves")
        folder.check_call(call)
        if self.arg and folder.pipeline_class is not None:
            check_known(folder.pipeline_class, call)
        if self.scheduler is not None:
            check_scheduler(self.scheduler, folder.scheduler_config)
        return call

    def _facts(self, folder: Any, place: Placement, call: dict[str, Any]) -> dict[str, Any]:
        """What decides all pictures, beside strategy, prompt and seed."""
        from ..models.loading import choose_dtype

        dtype = str(choose_dtype(self.dtype, place.device, folder.denoiser)).removeprefix("torch.")
        facts = {"model": self.model, "pipeline": folder.index["_class_name"], "dtype": dtype}
        scheduler = self.scheduler or folder.scheduler_config.get("_class_name")
        further = {"scheduler": scheduler, "device": place.device_type, **self.given("variant", "model_config")}
        return facts | further | {"images_per_prompt": self.images_per_prompt} | call


def _made_with() -> dict[str, Any]:
    import platform

    from ..evaluation.machine import versions

    machine = {"processor": platform.machine(), "cores": os.cpu_count(), **versions()}
    return {"machine": machine, "command": command_line()}


def _write(output: Any, content: dict[str, Any], gallery: Any, scores: Any) -> None:
    """Write metrics, table and page into the output, and tell."""
    from ..evaluation.images.page import format_evaluation, format_page, short_table, skipped_lines

    written = [output.path, output.folder / "metrics.json", output.folder / "metrics.md"]
    texts = [
        "".join(format_page(content, gallery, scores)),
        json.dumps(content, indent=1) + "\n",
        format_evaluation(content),
    ]
    for path, text in zip(written, texts, strict=True):
        write_whole(path, text)
    print(align(short_table(content["rows"])))
    print("\n".join(["", *skipped_lines(content), *(f"  {path}" for path in written)]))
