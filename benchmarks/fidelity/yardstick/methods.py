"""The methods that are compared: what each makes of a model's experts, and how long it takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fidelity.algorithms import ALGORITHMS
from fidelity.network import Network, Weights
from fidelity.ours import Documents, quantize, tune
from fidelity.peers import PEERS, Peer, PeerSetting, decode_pack_quantized, run_peer
from fidelity.stream import quantize_experts
from fidelity.texts import Sequences
from moe4 import load_report


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a method gets: the model, its calibration documents and their tokens, and a folder of its own."""

    model: Path
    network: Network
    documents: Documents
    sequences: Sequences
    peers: PeerSetting
    work: Path


@dataclass(frozen=True, slots=True)
class Made:
    """Dense expert weights, the seconds of each step, and what else is to be known of the run."""

    weights: Weights
    seconds: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Method:
    """A way to quantize; one that needs no calibration runs once a model."""

    title: str
    make: Callable[[Job], Made]
    is_calibrated: bool = True


def _quantized(job: Job) -> tuple[Path, dict[str, float]]:
    """Return moe4's release and its seconds; it drew the documents that the peers are given."""
    release = job.work / "release"
    seconds = quantize(job.model, release, job.documents)
    used = load_report(release).calibration
    assert used is not None and used.num_tokens == sum(map(len, job.sequences))
    return release, {"quantize": seconds}


def _moe4(job: Job) -> Made:
    release, seconds = _quantized(job)
    return Made(decode_pack_quantized(release), seconds)


def _tuned(job: Job) -> Made:
    release, seconds = _quantized(job)
    tuned = job.work / "tuned"
    better, seconds["tune"] = tune(job.model, release, tuned, job.documents)
    return Made(decode_pack_quantized(better), seconds, {"tuning_helped": better == tuned})


def _peer(peer: Peer) -> Callable[[Job], Made]:
    def make(job: Job) -> Made:
        weights, facts = run_peer(peer, job.peers, job.model, job.sequences, job.work)
        return Made(weights, {"quantize": facts["seconds"]}, {"versions": facts["versions"]})

    return make


def _rounded(job: Job) -> Made:
    return Made(quantize_experts(job.network, ALGORITHMS["rtn"], []), {})


METHODS = {
    "moe4": Method("moe4", _moe4),
    "moe4-tuned": Method("moe4, then `moe4 tune`", _tuned),
    **{peer.name: Method(peer.title, _peer(peer)) for peer in PEERS},
    "rtn": Method(ALGORITHMS["rtn"].title, _rounded, is_calibrated=False),
}
