"""Make the tiny embedded models: train, export, evaluate.

From nothing, on two cores (minutes in brackets):

    python tools/train_tiny.py --threads 2 vae                                                 (15)
    for seed in 0 1 2 3; do python tools/train_tiny.py --seed $seed scenes; done               (9)
    python tools/train_tiny.py train tiny-sdxl --minutes 200 & python tools/train_tiny.py train tiny-sd3
    python tools/train_tiny.py export

Every training can be killed and started again; a larger --minutes continues a finished one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import tiny_denoisers
import tiny_evaluation
import tiny_models
import tiny_vae
from hybridiff.models import tiny
from hybridiff.models.loading import load_pipeline

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def main() -> None:
    arguments = _parser().parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    COMMANDS[arguments.command](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "hybridiff-tiny", help="checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    vae = commands.add_parser("vae", help="train the shared VAE")
    vae.add_argument("--minutes", type=float, default=15)
    vae.add_argument("--batch", type=int, default=4)
    vae.add_argument("--rate", type=float, default=2e-3)
    scenes = commands.add_parser("scenes", help="render and encode training scenes; another --seed adds more")
    scenes.add_argument("--count", type=int, default=12000)
    train = commands.add_parser("train", help="train a denoiser with its text encoders")
    train.add_argument("name", choices=tiny.EMBEDDED)
    train.add_argument("--minutes", type=float, default=100)
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--rate", type=float, default=1e-3)
    train.add_argument("--from-scratch", action="store_true", help="not from the package's weights")
    export = commands.add_parser("export", help="write the averaged weights into the package")
    export.add_argument("names", nargs="*", default=list(tiny.EMBEDDED))
    evaluate = commands.add_parser("evaluate", help="draw held-out captions with the stock pipeline and check them")
    _drawing_options(evaluate, captions=100)
    evaluate.add_argument("--objects", type=int, choices=(1, 2), default=1)
    evaluate.add_argument("--working", action="store_true", help="the checkpoint of the cache, not the package's")
    check = commands.add_parser("check", help="how many rendered scenes the checker accepts")
    check.add_argument("--count", type=int, default=500)
    discrepancy = commands.add_parser("discrepancy", help="how far the two branches are apart, step by step")
    _drawing_options(discrepancy, captions=64)
    plots = commands.add_parser("plots", help="redraw the plot of the discrepancies that were measured")
    plots.add_argument("--out", type=Path, default=RESULTS)
    return parser


def _drawing_options(parser: argparse.ArgumentParser, captions: int) -> None:
    parser.add_argument("name", choices=tiny.EMBEDDED)
    parser.add_argument("--captions", type=int, default=captions)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, help="by default what suits the model")
    parser.add_argument("--out", type=Path, default=RESULTS)


def _vae(arguments: argparse.Namespace) -> None:
    tiny_vae.train_vae(arguments.cache, arguments.minutes, arguments.batch, arguments.rate, arguments.seed)
    print(tiny_vae.measure_vae(arguments.cache))


def _scenes(arguments: argparse.Namespace) -> None:
    tiny_denoisers.encode_scenes(arguments.cache, arguments.count, arguments.seed)


def _train(arguments: argparse.Namespace) -> None:
    tiny_denoisers.train(
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
        tiny_models.export(tiny_denoisers.load_pipeline(arguments.cache, name), tiny.folder(name))


def _evaluate(arguments: argparse.Namespace) -> None:
    name, objects = arguments.name, arguments.objects
    guidance = arguments.guidance or tiny.GUIDANCE[name]
    pipeline = tiny_denoisers.load_pipeline(arguments.cache, name) if arguments.working else load_pipeline(name)
    counts, pictures, failed = tiny_evaluation.evaluate(
        pipeline, objects, arguments.captions, arguments.steps, guidance, arguments.seed
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"{name}-{objects}-object{'s' if objects > 1 else ''}"
    stem.with_suffix(".json").write_text(json.dumps({**counts, "failed": failed}, indent=1) + "\n")
    tiny_evaluation.grid(pictures[:50]).save(stem.with_suffix(".jpg"), quality=90)
    print(name, counts, *failed, sep="\n")


def _check(arguments: argparse.Namespace) -> None:
    for objects in (1, 2):
        for name, rate in tiny_evaluation.check_checker(arguments.count, objects, arguments.seed).items():
            print(f"{objects} object(s), {name}: accepted {rate}")


def _discrepancy(arguments: argparse.Namespace) -> None:
    guidance = arguments.guidance or tiny.GUIDANCE[arguments.name]
    result = tiny_evaluation.discrepancy(
        load_pipeline(arguments.name), arguments.captions, arguments.steps, guidance, arguments.seed
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.name}-discrepancy.json").write_text(json.dumps(result) + "\n")
    _plots(arguments)


def _plots(arguments: argparse.Namespace) -> None:
    files = {name: arguments.out / f"{name}-discrepancy.json" for name in tiny.EMBEDDED}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    tiny_evaluation.plot_discrepancy(results, arguments.out / "tiny-discrepancy.png")


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
