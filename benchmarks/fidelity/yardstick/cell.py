"""One cell: quantize a model by a method, measure it on held-out text, leave the sums of each document."""

import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import transformers

import moe4
from fidelity.measure import Divergence, HeldOut
from fidelity.network import Network
from fidelity.ours import Documents
from fidelity.peers import PeerSetting
from fidelity.texts import Sequences, calibration_sequences, heldout_documents
from fidelity.yardstick.cells import Cell, Record, digest_of, digest_of_model, write_record
from fidelity.yardstick.methods import METHODS, Job
from moe4.machine.processors import num_usable, read_cpuinfo
from moe4.recipe import Calibration


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutCounts:
    """How much held-out text is measured on; the defaults are 300 documents of 100,045 tokens."""

    problems: int = 400
    tool_turns: int = 130
    chats: int = 70


@dataclass(frozen=True, kw_only=True, slots=True)
class CellSetting:
    """What all cells of a run share. jobs: cells at a time, which their seconds depend on."""

    results: Path
    device: str
    counts: HeldOutCounts
    peers: PeerSetting
    jobs: int


def run_cell(cell: Cell, model: Path, setting: CellSetting) -> None:
    """Do a cell and write its record. Raises CommandError or PeerError."""
    device = torch.device(setting.device)
    documents = Documents(num_sequences=cell.num_sequences, seed=cell.draw or 0, device=setting.device)
    network = Network(model, device)
    sequences = _calibration(model, cell)
    setting.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=setting.results, prefix=f".{cell.name}-") as folder:
        made = METHODS[cell.method].make(
            Job(
                model=model,
                network=network,
                documents=documents,
                sequences=sequences,
                peers=setting.peers,
                work=Path(folder),
            )
        )
    counts = asdict(setting.counts)
    texts = heldout_documents(model, **{f"num_{name}": number for name, number in counts.items()})
    heldout = HeldOut(network, texts)
    record: Record = {
        "model_sha256": digest_of_model(model),
        "calibration": {
            "sequences": len(sequences),
            "tokens": sum(map(len, sequences)),
            "sha256": digest_of(sequences),
        }
        if sequences
        else None,
        "heldout": {
            **counts,
            "documents": len(texts),
            "tokens": heldout.num_tokens,
            "sha256": digest_of([[each.ids, each.is_answer] for each in texts]),
        },
        "seconds": {step: round(number, 2) for step, number in made.seconds.items()},
        "facts": made.facts,
        "machine": describe(device, setting.jobs),
        "documents": sums_of(heldout.measure(made.weights)),
    }
    write_record(setting.results, cell, record)


def sums_of(divergence: Divergence) -> dict[str, list[float]]:
    """Return each sum per document, to eight digits."""
    return {
        field.name: [float(f"{value:.8g}") for value in getattr(divergence, field.name).tolist()]
        for field in fields(divergence)
    }


def describe(device: torch.device, jobs: int) -> Record:
    """Return what a cell's seconds depend on."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "processor": read_cpuinfo().get("model name", "unknown processor"),
        "num_cpus": num_usable(),
        "num_threads": torch.get_num_threads(),
        "jobs": jobs,
        **gpu,
        "moe4": moe4.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _calibration(model: Path, cell: Cell) -> Sequences:
    if not METHODS[cell.method].is_calibrated:
        return []
    assert cell.draw is not None
    return calibration_sequences(model, Calibration(num_sequences=cell.num_sequences, seed=cell.draw))
