"""Train k2-tiny with MuonClip: `python -m k2tiny.train` (what `make reference-model` runs).

A run lives in a folder (--run, default runs/k2-tiny): state.safetensors, log.jsonl and, when it stops, the
weights in `weights/`. Started again, it goes on from its last state. --publish copies the finished weights to
reference/k2-tiny.
"""

import argparse
import shutil
import tomllib
from pathlib import Path

import torch

from k2tiny.places import CHECKPOINT
from k2tiny.trainer import Trainer, TrainingConfig

PRESETS = Path(__file__).with_name("training.toml")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=["auto", "gpu", "cpu"], default="auto")
    parser.add_argument("--run", type=Path, default=Path("runs/k2-tiny"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="override a preset's value")
    parser.add_argument("--stop-after-seconds", type=float, default=float("inf"))
    parser.add_argument("--save-every-seconds", type=float, default=120.0)
    parser.add_argument(
        "--publish", action="store_true", help="copy the finished weights to reference/k2-tiny"
    )
    options = parser.parse_args()
    preset = options.preset
    if preset == "auto":
        preset = "gpu" if torch.cuda.is_available() else "cpu"
    values = tomllib.loads(PRESETS.read_text())[preset]
    for item in options.set:
        key, _, value = item.partition("=")
        if key not in values:
            parser.error(f"--set {item}: unknown key; the keys are {', '.join(values)}")
        values[key] = type(values[key])(float(value))
    values |= {key: tuple(values[key]) for key in ("row_tokens", "row_shares")}
    options.run.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        TrainingConfig(**values), options.run, torch.device("cuda" if preset == "gpu" else "cpu")
    )
    if trainer.resume():
        print(f"resumed at step {trainer.step}", flush=True)
    finished = trainer.fit(
        stop_after_seconds=options.stop_after_seconds, save_every_seconds=options.save_every_seconds
    )
    trainer.export(options.run / "weights")
    if finished and options.publish:
        for file in (options.run / "weights").glob("model*"):
            shutil.copy2(file, CHECKPOINT / file.name)
    print("finished" if finished else f"stopped at step {trainer.step}; run again to go on", flush=True)


if __name__ == "__main__":
    main()
