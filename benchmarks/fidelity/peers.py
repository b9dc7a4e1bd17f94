"""Other quantizers, each from its package in an environment of its own; what they wrote, as dense weights."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from torch import Tensor

from fidelity.network import Weights
from fidelity.texts import Sequences

TORCH = {"cpu": "torch==2.13.0+cpu", "cuda": "torch==2.13.0"}


class PeerError(Exception):
    """A peer could not be installed, or did not finish; the message is its own last line."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A package, the script that drives it, and how its output is read.

    The script computes on the GPU if it sees one.
    """

    name: str
    title: str
    package: str
    script: str
    decode: Callable[[Path], Weights]
    environment: dict[str, str] = field(default_factory=dict)


def decode_pack_quantized(folder: Path) -> Weights:
    """Return the experts' weights of a pack-quantized release, decoded by compressed-tensors in float32."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(config).config_groups.values()
    stored = _load(folder)
    weights = {}
    for name in [name for name in stored if name.endswith(".weight_packed") and ".mlp.experts." in name]:
        base = name.removesuffix(".weight_packed")
        state = {leaf: stored[f"{base}.{leaf}"] for leaf in ("weight_packed", "weight_scale", "weight_shape")}
        state["weight_scale"] = state["weight_scale"].float()
        weights[f"{base}.weight"] = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
    return weights


def decode_gptq(folder: Path) -> Weights:
    """Return the experts' weights of a checkpoint in GPTQ's format, version 1, symmetric.

    Code k of each eight sits at bits 4k..4k+3 of a word; qweight [in / 8, out], qzeros [groups, out / 8] one
    less than the zero, scales [groups, out], g_idx [in].
    """
    stored = _load(folder)
    weights = {}
    for name in [name for name in stored if name.endswith(".qweight") and ".mlp.experts." in name]:
        base = name.removesuffix(".qweight")
        codes = _nibbles(stored[name].T).T
        zeros = _nibbles(stored[f"{base}.qzeros"]) + 1
        group = stored[f"{base}.g_idx"].long()
        scales = stored[f"{base}.scales"].float()
        weights[f"{base}.weight"] = ((codes - zeros[group]) * scales[group]).T.contiguous()
    return weights


def _nibbles(words: Tensor) -> Tensor:
    """Return the 4-bit codes [rows, 8 columns] of int32 words [rows, columns]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words.to(torch.int32)[:, :, None] >> shifts) & 15).flatten(1)


def _load(folder: Path) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored.update(load_file(path))
    return stored


PEERS = (
    Peer(
        name="llmcompressor",
        title="llm-compressor",
        package="llmcompressor==0.14.*",
        script="peer_llmcompressor.py",
        decode=decode_pack_quantized,
    ),
    Peer(
        name="gptqmodel",
        title="GPTQModel",
        package="gptqmodel==7.6.*",
        script="peer_gptqmodel.py",
        decode=decode_gptq,
        # Its pool of threads wants two workers for loading, and by default has one on two cores.
        environment={"GPTQMODEL_CPU_WORKERS": "2"},
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerSetting:
    """What peers run with: `pythons` by their names, `environments` to make others in, "cpu" or "cuda"."""

    pythons: dict[str, Path]
    environments: Path
    limit_seconds: float
    device: str = "cpu"


def run_peer(
    peer: Peer, setting: PeerSetting, model: Path, sequences: Sequences, work: Path
) -> tuple[Weights, dict[str, Any]]:
    """Return a peer's expert weights and facts about its run. Raises PeerError.

    What it wrote is kept in `work`, a folder of this model and device, and used again for the same tokens.
    """
    out = work / f"out-{peer.name}"
    facts_path = work / f"out-{peer.name}.json"
    tokens = json.dumps(sequences)
    facts = json.loads(facts_path.read_text()) if facts_path.is_file() else {}
    if facts.get("tokens") != hash_of(tokens):
        python = find_python(peer, setting)
        twin, tokens_path = make_twin(model, work), work / "tokens.json"
        tokens_path.write_text(tokens)
        script = Path(__file__).with_name(peer.script)
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if setting.device == "cpu" else {}
        started = time.monotonic()
        _run(
            [str(python), str(script), str(twin), str(tokens_path), str(out)],
            work / f"{peer.name}.log",
            setting.limit_seconds,
            {**peer.environment, **hidden},
        )
        facts = {
            "versions": json.loads((out / "versions.json").read_text()),
            "seconds": round(time.monotonic() - started, 1),
            "tokens": hash_of(tokens),
        }
        facts_path.write_text(json.dumps(facts))
    weights = peer.decode(out)
    if not weights:
        raise PeerError(f"{out} holds no quantized experts")
    return weights, facts


def hash_of(text: str) -> str:
    """Return a short hash that tells token sets apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_python(peer: Peer, setting: PeerSetting) -> Path:
    """Return the Python of a peer's environment; make it if none is given or there. Raises PeerError."""
    given = setting.pythons.get(peer.name)
    if given is not None:
        return given
    environments = setting.environments
    environments.mkdir(parents=True, exist_ok=True)
    folder = environments / f"env-{peer.name}-{setting.device}"
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.is_file():
        log = environments / f"{peer.name}-install.log"
        _run([sys.executable, "-m", "venv", str(folder)], log, 300, {})
        packages = [TORCH[setting.device], peer.package]
        _run([str(python), "-m", "pip", "install", "-q", *packages], log, 1800, {})
        stamp.touch()
    return python


def make_twin(model: Path, work: Path) -> Path:
    """Return a folder in `work` with the model under the type that transformers knows."""
    folder = work / f"twin-{model.name}"
    folder.mkdir(exist_ok=True)
    for path in model.iterdir():
        link = folder / path.name
        if path.name != "config.json" and not link.exists():
            link.symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "deepseek_v3"}, indent=2))
    return folder


def parse_python(text: str) -> tuple[str, Path]:
    """Return the peer's name and the Python of an option NAME=PATH. Raises ArgumentTypeError."""
    known = [peer.name for peer in PEERS]
    name, _, path = text.partition("=")
    if name not in known or not path:
        raise argparse.ArgumentTypeError(f"expected {' or '.join(known)}, then =PATH, found {text!r}")
    return name, Path(path).absolute()


def _run(command: list[str], log: Path, limit_seconds: float, environment: dict[str, str]) -> None:
    """Run a command with its output in `log`. Raises PeerError."""
    with log.open("a") as file:
        try:
            result = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit_seconds,
                env={**os.environ, **environment},
                cwd=log.parent,  # GPTQModel leaves a folder of logs where it runs
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PeerError(f"did not finish within {limit_seconds:.0f} s") from None
    if result.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise PeerError(lines[-1] if lines else f"exit code {result.returncode}")
