"""Make the tiny embedded models: train, export, evaluate.

From nothing, in the repository's root, on two cores (minutes in brackets; both denoisers at once):

    python -m tools.tiny_models --threads 2 vae                                                  (15)
    for seed in 0 1 2 3; do python -m tools.tiny_models --seed $seed scenes; done                (9)
    python -m tools.tiny_models train tiny-sdxl --minutes 200                                    (200)
    python -m tools.tiny_models train tiny-sd3                                                   (100)
    python -m tools.tiny_models export

Every training can be killed and started again; a larger --minutes continues a finished one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from hybridiff.models import tiny
from hybridiff.models.loading import load_pipeline

from . import denoisers, evaluation, pipelines, scenes, vae

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def main() -> None:
    arguments = _parser().parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    COMMANDS[arguments.command](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tools.tiny_models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "hybridiff-tiny", help="checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_training(commands)
    _add_measuring(commands)
    return parser


def _add_training(commands: Any) -> None:
    shared = commands.add_parser("vae", help="train the shared VAE")
    shared.add_argument("--minutes", type=float, default=15)
    shared.add_argument("--batch", type=int, default=4)
    shared.add_argument("--rate", type=float, default=2e-3)
    encoded = commands.add_parser("scenes", help="render and encode training scenes; another --seed adds more")
    encoded.add_argument("--count", type=int, default=12000)
    train = commands.add_parser("train", help="train a denoiser with its text encoders")
    train.add_argument("name", choices=tiny.EMBEDDED)
    train.add_argument("--minutes", type=float, default=100)
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--rate", type=float, default=1e-3)
    train.add_argument("--from-scratch", action="store_true", help="not from the package's weights")
    export = commands.add_parser("export", help="write the averaged weights into the package")
    export.add_argument("names", nargs="*", default=list(tiny.EMBEDDED))


def _add_measuring(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="generate held-out captions with the stock pipeline and check them")
    _generation_options(evaluate, captions=100)
    evaluate.add_argument("--objects", type=int, choices=(1, 2), default=1)
    evaluate.add_argument("--working", action="store_true", help="the checkpoint of the cache, not the package's")
    check = commands.add_parser("check", help="how many rendered scenes the checker accepts")
    check.add_argument("--count", type=int, default=500)
    discrepancy = commands.add_parser("discrepancy", help="how far the two branches are apart, step by step")
    _generation_options(discrepancy, captions=64)
    plots = commands.add_parser("plots", help="plot the discrepancies that were measured before")
    plots.add_argument("--out", type=Path, default=RESULTS)


def _generation_options(parser: argparse.ArgumentParser, captions: int) -> None:
    parser.add_argument("name", choices=tiny.EMBEDDED)
    parser.add_argument("--captions", type=int, default=captions)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, help="by default what suits the model")
    parser.add_argument("--out", type=Path, default=RESULTS)


def _vae(arguments: argparse.Namespace) -> None:
    vae.train_vae(arguments.cache, arguments.minutes, arguments.batch, arguments.rate, arguments.seed)
    print(vae.measure_vae(arguments.cache))


def _scenes(arguments: argparse.Namespace) -> None:
    scenes.encode_scenes(arguments.cache, arguments.count, arguments.seed)


def _train(arguments: argparse.Namespace) -> None:
    denoisers.train(
        arguments.cache,
        arguments.name,
        arguments.minutes,
        arguments.batch,
        arguments.rate,
        arguments.seed,
        arguments.from_scratch,
    )


def _export(arguments: argparse.Namespace) -> None:
    for name in arguments.names:
        pipelines.export(denoisers.load_pipeline(arguments.cache, name), tiny.folder(name))


def _evaluate(arguments: argparse.Namespace) -> None:
    name, objects = arguments.name, arguments.objects
    guidance = arguments.guidance or tiny.GUIDANCE[name]
    pipeline = denoisers.load_pipeline(arguments.cache, name) if arguments.working else load_pipeline(name)
    counts, images, failed = evaluation.evaluate(
        pipeline, objects, arguments.captions, arguments.steps, guidance, arguments.seed
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"{name}-{objects}-object{'s' if objects > 1 else ''}"
    stem.with_suffix(".json").write_text(json.dumps({**counts, "failed": failed}, indent=1) + "\n")
    evaluation.grid(images[:50]).save(stem.with_suffix(".jpg"), quality=90)
    print(name, counts, *failed, sep="\n")


def _check(arguments: argparse.Namespace) -> None:
    for objects in (1, 2):
        for name, rate in evaluation.check_checker(arguments.count, objects, arguments.seed).items():
            print(f"{objects} object(s), {name}: accepted {rate}")


def _discrepancy(arguments: argparse.Namespace) -> None:
    guidance = arguments.guidance or tiny.GUIDANCE[arguments.name]
    result = evaluation.discrepancy(
        load_pipeline(arguments.name), arguments.captions, arguments.steps, guidance, arguments.seed
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.name}-discrepancy.json").write_text(json.dumps(result) + "\n")
    _plots(arguments)


def _plots(arguments: argparse.Namespace) -> None:
    files = {name: arguments.out / f"{name}-discrepancy.json" for name in tiny.EMBEDDED}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    evaluation.plot_discrepancy(results, arguments.out / "tiny-discrepancy.png")


COMMANDS = {
    "vae": _vae,
    "scenes": _scenes,
    "train": _train,
    "export": _export,
    "evaluate": _evaluate,
    "check": _check,
    "discrepancy": _discrepancy,
    "plots": _plots,
}


if __name__ == "__main__":
    main()
