"""`moe4 coverage`: which experts a calibration file reaches, and which documents would balance it.

The whole model runs over the documents, streamed as in `moe4 compare`; what is kept are counts of tokens by
document, layer and expert, 4 bytes each.
"""

import heapq
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from moe4 import reference
from moe4.arguments import argument
from moe4.calibration.chat import join_parts
from moe4.calibration.corpus import draw_reference, tokenize_all
from moe4.calibration.documents import Drawn, draw_from
from moe4.calibration.formats import Document
from moe4.calibration.tokenizer import load_tokenizer
from moe4.errors import CalibrationError
from moe4.evaluate.coverage.overlap import Overlap, describe_overlap
from moe4.forward.device import usable_device
from moe4.forward.stream import Stream
from moe4.forward.trial import try_family
from moe4.forward.weights import open_model
from moe4.progress import OnProgress, Pace, ignore
from moe4.strict_json import JsonObject
from moe4.units import layer_done

REFERENCE_DOCUMENTS = 256  # of the reference model's generator, which has no end

COLD_SHOWN, SUGGESTED = 10, 5
Counts = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class CoverageOptions:
    """The options of `moe4 coverage`. cold_tokens: an expert with fewer is cold."""

    model: Path
    calibration: Path | None = None
    num_documents: int | None = None
    max_sequence_tokens: int = 1024
    cold_tokens: int = 512
    choose: int | None = None
    device: str = "cpu"
    family_as_is: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """Tokens by document, MoE layer and expert, int32 [documents, layers, experts]."""

    documents: list[tuple[str, Document]]
    counts: Counts
    layers: list[int]
    num_tokens: list[int]
    top_k: int


def measure(
    options: CoverageOptions, say: Callable[[str], None], on_progress: OnProgress = ignore
) -> Coverage:
    """Run the documents through the model and count. Raises CheckpointError or CalibrationError."""
    pace = Pace(on_progress, "counting")
    weights, network = open_model(options.model, torch.bfloat16, family_as_is=options.family_as_is)
    try_family(weights.config)
    drawn = draw(options.model, options.calibration, options.num_documents)
    say(drawn.describe())
    documents = drawn.documents
    tokenizer = load_tokenizer(options.model, network.config, trust_remote_code=options.trust_remote_code)
    sequences = tokenize_all(tokenizer, documents, options.max_sequence_tokens)
    lengths = [len(sequence) for sequence in sequences]
    owner = torch.repeat_interleave(torch.arange(len(sequences)), torch.tensor(lengths, dtype=torch.int64))
    shapes = [(layer, shape) for layer, shape in enumerate(network.experts) if shape is not None]
    counts = np.zeros((len(sequences), len(shapes), max(shape.num_experts for _, shape in shapes)), np.int32)
    top_k, place = 1, 0
    with tempfile.TemporaryDirectory(prefix="moe4-coverage-") as work:
        stream = Stream(weights, network, sequences, Path(work), usable_device(options.device))
        stream.embed()
        for layer in range(network.num_layers):
            pace.layer(layer, network.num_layers)
            passed = stream.attend(layer)
            shape = network.experts[layer]
            if shape is not None:
                assert passed.ids is not None
                top_k = passed.ids.shape[1]
                index = owner.unsqueeze(1) * shape.num_experts + passed.ids
                index = index[passed.ids < shape.num_experts]
                flat = torch.bincount(index, minlength=len(sequences) * shape.num_experts)
                counts[:, place, : shape.num_experts] = flat.view(len(sequences), -1).numpy()
                place += 1
            stream.add_experts(layer, passed)
            stream.finish_layer(passed)
            say(layer_done(layer, network.num_layers))
    return Coverage(
        documents=documents,
        counts=counts,
        layers=[layer for layer, _ in shapes],
        num_tokens=lengths,
        top_k=top_k,
    )


def draw(model: Path, path: Path | None, num_documents: int | None) -> Drawn:
    """Return the first documents of the file, or the reference documents. Raises CalibrationError."""
    if path is None:
        raise CalibrationError(
            f"coverage of {model} needs a file of documents: give {argument('calibration', 'FILE.jsonl')}"
        )
    if reference.is_asked_for(path):
        return draw_reference(num_documents or REFERENCE_DOCUMENTS, 0)
    return draw_from(path, None, lambda items: list(items)[:num_documents])


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerLoad:
    """The tokens of a layer's experts, and how many of these are cold."""

    layer: int
    least: int
    median: int
    most: int
    num_cold: int
    tokens: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ColdExpert:
    """An expert with few tokens."""

    layer: int
    expert: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmingDocument:
    """A document whose tokens go to cold experts: so many visits, and how it begins."""

    where: str
    hits: int
    num_tokens: int
    begins: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenDocuments:
    """What a choice of documents reaches, beside as many drawn at random."""

    num_documents: int
    num_tokens: int
    least: int
    num_cold: int
    drawn_least: int
    drawn_num_cold: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CoverageSummary:
    """Loads by layer, the coldest experts, and the documents that reach them most.

    chosen, overlap: where documents were to be chosen, and compared with questions.
    """

    num_documents: int
    num_tokens: int
    cold_tokens: int
    even_load: float
    layers: list[LayerLoad]
    num_cold: int
    cold: list[ColdExpert]
    num_unreached: int
    documents_for_the_cold: list[WarmingDocument]
    chosen: ChosenDocuments | None = None
    overlap: Overlap | None = None

    @property
    def ok(self) -> bool:
        """Whether calibration and evaluation share no text; true where that was not asked."""
        return self.overlap is None or not self.overlap.num_overlapping

    def as_dict(self) -> JsonObject:
        """Return plain JSON types, without what was not asked for."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return describe(self)


def summarize(
    coverage: Coverage,
    cold_tokens: int,
    chosen: Sequence[int] | None = None,
    overlap: Overlap | None = None,
) -> CoverageSummary:
    """Return what the counts come to. chosen: the documents that were chosen, by number."""
    totals = coverage.counts.sum(0, dtype=np.int64)
    cold = np.argwhere(totals < cold_tokens)
    cold = cold[np.argsort(totals[cold[:, 0], cold[:, 1]], kind="stable")]
    return CoverageSummary(
        num_documents=len(coverage.documents),
        num_tokens=sum(coverage.num_tokens),
        cold_tokens=cold_tokens,
        even_load=sum(coverage.num_tokens) * coverage.top_k / totals.shape[1],
        layers=[
            LayerLoad(
                layer=layer,
                least=int(load.min()),
                median=int(np.median(load)),
                most=int(load.max()),
                num_cold=int((load < cold_tokens).sum()),
                tokens=load.tolist(),
            )
            for layer, load in zip(coverage.layers, totals, strict=True)
        ],
        num_cold=len(cold),
        cold=[
            ColdExpert(
                layer=coverage.layers[layer], expert=int(expert), num_tokens=int(totals[layer, expert])
            )
            for layer, expert in cold[:COLD_SHOWN]
        ],
        num_unreached=int((totals == 0).sum()),
        documents_for_the_cold=suggest(coverage, cold),
        chosen=None if chosen is None else compare_choice(coverage, chosen, cold_tokens),
        overlap=overlap,
    )


def suggest(coverage: Coverage, cold: NDArray[np.intp]) -> list[WarmingDocument]:
    """Return the documents whose tokens go to cold experts most often: more like these warm them."""
    if not len(cold):
        return []
    hits = coverage.counts[:, cold[:, 0], cold[:, 1]].sum(1, dtype=np.int64)
    shares = hits / np.maximum(1, coverage.num_tokens)
    order = [int(place) for place in np.argsort(-shares, kind="stable")[:SUGGESTED] if hits[place]]
    return [
        WarmingDocument(
            where=coverage.documents[place][0],
            hits=int(hits[place]),
            num_tokens=coverage.num_tokens[place],
            begins=document_text(coverage.documents[place][1])[:80],
        )
        for place in order
    ]


def choose(counts: Counts, num: int) -> list[int]:
    """Return `num` documents, in order, whose tokens reach all experts as evenly as a greedy choice finds.

    Maximizes the sum over experts of log(1 + tokens): concave, so that the next token is worth most to the
    coldest expert. Of such functions the greedy choice reaches at least 1 - 1/e of the best value (Nemhauser,
    Wolsey and Fisher 1978); gains only shrink, so stale ones are bounds and few are computed again.
    """
    flat = counts.reshape(len(counts), -1)
    total = np.zeros(flat.shape[1])

    def gain(place: int) -> float:
        row = flat[place]
        used = row.nonzero()[0]
        return float(np.log1p(row[used] / (1 + total[used])).sum())

    heap = [(-gain(place), place) for place in range(len(flat))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < num:
        _, place = heapq.heappop(heap)
        fresh = gain(place)
        if heap and fresh < -heap[0][0] - 1e-12:
            heapq.heappush(heap, (-fresh, place))
            continue
        chosen.append(place)
        total += flat[place]
    return sorted(chosen)


def document_text(document: Document) -> str:
    """Return a document's words: its text, or the contents of its messages."""
    if "text" in document:
        return str(document["text"])
    return " ".join(join_parts(message.get("content")) for message in document["messages"])


def describe(result: CoverageSummary) -> str:
    """Return a coverage as text."""
    lines = [
        f"{result.num_tokens} tokens of {result.num_documents} documents; an even load is "
        f"{result.even_load:.0f} tokens an expert",
        "layer  least  median    most  cold",
    ]
    for layer in result.layers:
        lines.append(
            f"{layer.layer:>5}  {layer.least:>5}  {layer.median:>6}  {layer.most:>6}  {layer.num_cold:>4}"
        )
    if result.num_cold:
        lines.append(
            f"{result.num_cold} experts have fewer than {result.cold_tokens} tokens, "
            f"{result.num_unreached} have none; the coldest:"
        )
        lines += [f"  layer {cold.layer} expert {cold.expert}: {cold.num_tokens}" for cold in result.cold]
        if result.documents_for_the_cold:
            lines.append("add documents like these, which reach them most often:")
            lines += [
                f"  {found.where}: {found.hits} visits in {found.num_tokens} tokens: {found.begins!r}"
                for found in result.documents_for_the_cold
            ]
        else:
            lines.append("no document of this file reaches them: add other kinds of text")
    else:
        lines.append(f"every expert has at least {result.cold_tokens} tokens")
    chosen = result.chosen
    if chosen is not None:
        lines.append(
            f"{chosen.num_documents} documents chosen: {chosen.num_cold} cold experts, least "
            f"{chosen.least}; of as many drawn at random: {chosen.drawn_num_cold}, least "
            f"{chosen.drawn_least}"
        )
    if result.overlap is not None:
        lines.append(describe_overlap(result.overlap))
    return "\n".join(lines)


def compare_choice(coverage: Coverage, chosen: Sequence[int], cold_tokens: int) -> ChosenDocuments:
    """Return what a choice reaches, beside as many documents drawn at random."""
    drawn = np.random.default_rng(0).choice(len(coverage.documents), size=len(chosen), replace=False)
    loads = [coverage.counts[list(places)].sum(0, dtype=np.int64) for places in (chosen, drawn)]
    return ChosenDocuments(
        num_documents=len(chosen),
        num_tokens=sum(coverage.num_tokens[place] for place in chosen),
        least=int(loads[0].min()),
        num_cold=int((loads[0] < cold_tokens).sum()),
        drawn_least=int(loads[1].min()),
        drawn_num_cold=int((loads[1] < cold_tokens).sum()),
    )
