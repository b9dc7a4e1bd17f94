"""`moe4 verify`: read a release as its users will and name everything that is wrong with it."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe4.checkpoint.index import CONFIG_NAME, INDEX_NAME, CheckpointIndex
from moe4.checkpoint.matching import find_matching
from moe4.checkpoint.packed import dequantize, unpack
from moe4.checkpoint.reads import ReadLog
from moe4.checkpoint.release_folder import REPORT_NAME, WORK_NAME
from moe4.checkpoint.report_file import NOT_COVERED, compare_files, read_report
from moe4.checkpoint.shard import StoredTensor, iterate_bytes, read_tensor
from moe4.checkpoint.source import PLAIN_DTYPES, Checkpoint
from moe4.errors import CheckpointError, MissingFileError, ProbeError
from moe4.escape import visible
from moe4.machine.memory import available_memory_bytes
from moe4.machine.processors import num_usable
from moe4.model.accounting import LINEAR, Accounting, summarize_names
from moe4.model.architecture import Network
from moe4.model.fused import take_experts_apart
from moe4.probe.form import PROBE_NAME, read_probe
from moe4.quantize.planning.release_plan import group_size_warnings
from moe4.quantize.reporting.layer_record import WORST_SHOWN
from moe4.quantize.transfer.device_memory import free_bytes, require_device, to_device, use_device
from moe4.recipe import GROUP_SIZES
from moe4.units import format_bytes
from moe4.verify.decoding import SourceDecoder

LARGEST_WEIGHT_ERROR = 0.5  # |W - Q|^2 / |W|^2 above this is another tensor's data, not quantization
BYTES_A_CODE = 44  # of memory: codes, and weights of two decoders each of release and source, with copies
BYTES_A_PLAIN_BYTE = 12  # of memory: as stored, and as two decoders give the source's in float32
MOST_THREADS = 64
PACKED_LEAVES = ("weight_packed", "weight_scale", "weight_shape")


Progress = Callable[[int, int], None]
"""Hears how many bytes of how many have been checked, from any thread."""


def verify(
    out: Path, source: Path | None = None, *, device: str = "cpu", on_progress: Progress | None = None
) -> dict[str, Any]:
    """Check a release; return what was found, with `problems` empty if nothing is wrong.

    Tensors are read and hashed by as many threads as there are processors and memory for, and decoded on
    `device`. Raises CheckpointError's children if `out` is no release or `source` no checkpoint at all.
    """
    if not os.path.lexists(out / CONFIG_NAME) or not os.path.lexists(out / INDEX_NAME):
        raise MissingFileError(f"{out} is no release: it has no {CONFIG_NAME} or no {INDEX_NAME}")
    verifier = _Verifier(out, Checkpoint(source) if source else None, require_device(device), on_progress)
    with one_thread_an_operation():
        return verifier.run()


class _Verifier:
    def __init__(
        self, out: Path, source: Checkpoint | None, device: torch.device, on_progress: Progress | None
    ) -> None:
        self.out, self.source, self.device = out, source, device
        if source is not None:
            source.reads = ReadLog()
        self.decoder = SourceDecoder(source) if source is not None else None
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.index = CheckpointIndex(out, self.problems)
        self.config, self.tensors = self.index.config, self.index.tensors
        self.num_listed = 0
        self.scheme: Any = None
        self.group_size = 0
        self.weight_errors: dict[str, float] = {}
        num_bytes = 2 * self.index.num_bytes  # once by tensors, once by files
        self.progress = _ByteCount(num_bytes, on_progress)

    def run(self) -> dict[str, Any]:
        """Run every check; one whose ground is gone is left out, as the ground's problem is named."""
        if os.path.lexists(self.out / WORK_NAME):
            self.problems.append(f"{WORK_NAME} is there: the run that wrote this release has not finished")
        self._check_index()
        self._check_config()
        network = Network(self.config, torch.bfloat16)
        if self.source is not None:
            take_experts_apart(self.source, network)
        if self.scheme is not None:
            accounting = Accounting(network, self.config)
            quantized = sorted(self._check_names(accounting))
            most = max((rows * columns for _, (rows, columns) in quantized), default=0)
            self._spread(lambda item: self._check_quantized(*item), quantized, BYTES_A_CODE * most)
            self._check_plain([base for base, _ in quantized])
            self._check_left_out([base for base, _ in quantized], accounting)
            self.warnings += group_size_warnings(self.group_size, network)
        report = self._check_report()
        self._check_probe(network)
        if self.source is not None:
            self._check_side_files(self.source, report)
            self._check_source(self.source, report)
        return self._result(report)

    def _check_index(self) -> None:
        """Check what vLLM reads beside the tensors that the index names, and the index's own sum."""
        for name in self.index.shards:
            if Path(name).name != name:
                self.problems.append(f"{INDEX_NAME} names {name}, which vLLM does not look for in a folder")
        for name, shard_name in self.index.unlisted.items():
            self.problems.append(f"{name} is in {shard_name}, and the index does not say so")
        if self.problems:
            return  # what the shards hold is not known
        total = sum(stored.spec.num_bytes for stored in self.tensors.values())
        metadata = self.index.index.get("metadata")
        if not isinstance(metadata, dict) or metadata.get("total_size") != total:
            self.problems.append(f"{INDEX_NAME}: metadata.total_size should be {total}")

    def _check_config(self) -> None:
        """Check that compressed-tensors reads the config and vLLM takes what it says."""
        from compressed_tensors.quantization import QuantizationConfig

        quantization = self.config.document.get("quantization_config")
        if not isinstance(quantization, dict):
            self.problems.append(f"{CONFIG_NAME} has no quantization_config")
            return
        if quantization.get("quant_method") != "compressed-tensors":
            self.problems.append("quantization_config.quant_method must be compressed-tensors")
            return
        try:
            parsed = QuantizationConfig.model_validate(quantization)
        except ValueError as error:
            reason = str(error).replace("\n", " ")
            self.problems.append(f"compressed-tensors does not accept the quantization_config: {reason}")
            return
        if len(parsed.config_groups) != 1:
            self.problems.append("quantization_config must have one config group")
            return
        scheme = next(iter(parsed.config_groups.values()))
        weights = scheme.weights
        wanted = {
            "format": (parsed.format, "pack-quantized"),
            "status": (str(parsed.quantization_status), "compressed"),
            "num_bits": (weights and weights.num_bits, 4),
            "type": (weights and str(weights.type), "int"),
            "symmetric": (weights and weights.symmetric, True),
            "strategy": (weights and str(weights.strategy), "group"),
            "dynamic": (weights and weights.dynamic, False),
            "input_activations": (scheme.input_activations, None),
        }
        wrong = []
        for key, (found, expected) in wanted.items():
            plain = getattr(found, "value", found)
            if (plain.rsplit(".", 1)[-1].lower() if isinstance(plain, str) else plain) != expected:
                wrong.append(f"quantization_config: {key} must be {expected}, found {plain}")
        if weights is not None and weights.group_size not in GROUP_SIZES:
            wrong.append(f"quantization_config: group_size must be 32, 64 or 128, found {weights.group_size}")
        if weights is not None and getattr(weights.actorder, "value", weights.actorder) == "group":
            wrong.append("quantization_config: vLLM does not take actorder group")
        self.problems.extend(wrong)
        if not wrong:
            self.scheme, self.group_size = scheme, int(weights.group_size)

    def _check_names(self, accounting: Accounting) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Check that every tensor is there; yield each quantized matrix without its leaf, and its shape."""
        ignore = (self.config.quantization and self.config.quantization.ignore) or []
        linears = {name.removesuffix(".weight") for name in accounting.needed if LINEAR.search(name)}
        try:
            quantized = linears - find_matching(linears, ignore)
        except CheckpointError as error:
            self.problems.append(str(error))
            return
        known: set[str] = set()
        for name, shape in accounting.needed.items():
            base = name.removesuffix("weight")
            if name.removesuffix(".weight") in quantized:
                missing = [leaf for leaf in PACKED_LEAVES if base + leaf not in self.tensors]
                self.problems.extend(f"{base}{leaf} is missing" for leaf in missing)
                known.update(base + leaf for leaf in PACKED_LEAVES)
                if not missing:
                    yield base, shape
                continue
            known.add(name)
            if name not in self.tensors:
                self.problems.append(f"{name} is missing")
            elif self.tensors[name].spec.shape != shape:
                found = list(self.tensors[name].spec.shape)
                self.problems.append(f"{name} must have shape {list(shape)}, found {found}")
        for name in sorted(set(self.tensors) - known):
            if name.rsplit(".", 1)[-1] in PACKED_LEAVES:
                self.problems.append(f"{name} is quantized, and quantization_config does not say so")
            elif accounting.kind(name) == "unknown":
                self.problems.append(f"{name} has no place in the model that {CONFIG_NAME} describes")

    def _spread(self, check: Callable[[Any], list[str]], items: Sequence[Any], item_bytes: int) -> None:
        """Check every item, several at a time, each in `item_bytes` of memory. Problems stay in order."""
        with ThreadPoolExecutor(
            num_threads(item_bytes, self.device), initializer=use_device, initargs=(self.device,)
        ) as threads:
            try:
                for found in threads.map(check, items):
                    self.problems.extend(found)
            except BaseException:  # Ctrl-C, too: the rest of the items need not be checked first
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _check_quantized(self, base: str, shape: tuple[int, ...]) -> list[str]:
        """Check one matrix's shapes, dtypes, scales and codes, and its likeness to the source's."""
        rows, columns = shape
        stored = [self.tensors[base + leaf] for leaf in PACKED_LEAVES]
        expected = {
            "weight_packed": ("I32", (rows, columns // 8)),
            "weight_scale": ("BF16", (rows, columns // self.group_size)),
            "weight_shape": ("I64", (2,)),
        }
        if self.tensors[base + "weight_shape"].spec.dtype == "I32":  # as Kimi-K2-Thinking is published
            expected["weight_shape"] = ("I32", (2,))
        for leaf, want in expected.items():
            spec = self.tensors[base + leaf].spec
            if (spec.dtype, spec.shape) != want:
                return [
                    f"{base}{leaf} must be {want[0]} {list(want[1])}, found {spec.dtype} {list(spec.shape)}"
                ]
        packed, scales, stored_shape = map(read_tensor, stored)
        if stored_shape.tolist() != list(shape):
            return [f"{base}weight_shape must be {list(shape)}, found {stored_shape.tolist()}"]
        packed, scales = to_device(packed, self.device), to_device(scales, self.device)
        if not torch.isfinite(scales).all() or bool((scales == 0).any()):
            return [f"{base}weight_scale holds zero, NaN or Inf"]
        weight, problems = dequantize(unpack(packed), scales), []
        theirs = self._decompress(packed, scales, shape)
        if not torch.equal(weight.to(torch.bfloat16), theirs.to(torch.bfloat16)):
            problems.append(f"{base}weight_packed: compressed-tensors decodes other weights than moe4")
        del theirs
        if self.source is not None:
            problems += self._compare_weight(self.source, base + "weight", weight)
        self.progress.add(sum(tensor.spec.num_bytes for tensor in stored))
        return problems

    def _decompress(self, packed: Tensor, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
        from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

        state = {"weight_packed": packed, "weight_scale": scales, "weight_shape": torch.tensor(shape)}
        weight: Tensor = PackedQuantizationCompressor.decompress(state, self.scheme)["weight"]
        return weight

    def _compare_weight(self, source: Checkpoint, name: str, weight: Tensor) -> list[str]:
        if name not in source.tensors or source.tensors[name].spec.shape != tuple(weight.shape):
            return [f"{name} has another shape in the source, or is not there"]
        original = self._load(source, name).float()
        differs = self.decoder.differs(name, original) if self.decoder else None
        if differs:
            return [differs]
        error = float((weight - original).square().sum() / original.square().sum().clamp(min=1e-30))
        self.weight_errors[name] = error
        if error > LARGEST_WEIGHT_ERROR:
            return [f"{name} is not like the source's: {error:.3g} of its squares are lost"]
        return []

    def _load(self, source: Checkpoint, name: str) -> Tensor:
        """Return a tensor of the source, decoded on the device."""
        return source.decode(name, tuple(to_device(piece, self.device) for piece in source.read(name)))

    def _check_plain(self, quantized: list[str]) -> None:
        """Check tensors that are not quantized: finite, and the source's bytes."""
        packed = {base + leaf for base in quantized for leaf in PACKED_LEAVES}
        names = sorted(set(self.tensors) - packed)
        most = max((self.tensors[name].spec.num_bytes for name in names), default=0)
        self._spread(self._check_plain_tensor, names, BYTES_A_PLAIN_BYTE * most)

    def _check_plain_tensor(self, name: str) -> list[str]:
        stored, problems = self.tensors[name], []
        tensor = read_tensor(stored) if stored.spec.dtype in PLAIN_DTYPES else None
        if tensor is not None and not torch.isfinite(tensor).all():
            problems.append(f"{name} holds NaN or Inf")
        if self.source is not None and name not in self.source.tensors:
            problems.append(f"{name} is not in the source")
        elif self.source is not None and self.source.is_encoded(name):
            original = self._load(self.source, name)
            if tensor is None or not torch.equal(original.to(torch.bfloat16), to_device(tensor, self.device)):
                problems.append(f"{name} is not the source's weight in BF16")
            differs = self.decoder.differs(name, original) if self.decoder else None
            problems += [differs] if differs else []
        elif self.source is not None and not _same_bytes(stored, self.source, name):
            problems.append(f"{name} differs from the source")
        self.progress.add(stored.spec.num_bytes)
        return problems

    def _check_left_out(self, quantized: list[str], accounting: Accounting) -> None:
        """Check that every tensor of the source which belongs to the model is in the release."""
        if self.source is None:
            return
        kept = set(self.tensors) | {base + "weight" for base in quantized}
        gone = sorted(set(self.source.tensors) - kept)
        lost = [name for name in gone if accounting.kind(name) in ("needed", "extra")]
        self.problems.extend(f"{name} of the source is missing" for name in lost)
        left_out = [name for name in gone if accounting.kind(name) == "unknown"]
        if left_out:
            self.warnings.append(
                "the release leaves out the source's tensors for which the model has no place: "
                + summarize_names(left_out)
            )

    def _check_report(self) -> dict[str, Any]:
        """Check every file against the report's list; return the report, empty if there is none."""
        path = self.out / REPORT_NAME
        if not path.is_file():
            self.problems.append(
                f"{REPORT_NAME} is missing: nothing says what the release's files should be, "
                "so none of them could be checked"
            )
            return {}
        try:
            report = read_report(self.out)
        except CheckpointError as error:
            self.problems.append(f"{error}, so none of the release's files could be checked")
            return {}
        shards, files = report["release"]["shards"], report["release"].get("files")
        if files is None:
            self.problems.append(f"{REPORT_NAME} does not list the release's files, so none could be checked")
            return report
        self.num_listed = len(shards) + len(files)
        for name, problem in compare_files(self.out, shards | files, self.progress.add):
            if problem == "is missing" and name in self.index.shards:
                continue  # named already
            if name == PROBE_NAME and "missing" in problem:
                problem += f"; moe4 probe {self.out} makes it again"
            elif name == PROBE_NAME:
                problem += f"; moe4 probe {self.out} --force makes it again"
            self.problems.append(f"{name} {problem}")
        return report

    def _check_probe(self, network: Network) -> None:
        """Check the form of the expected answers."""
        path = self.out / PROBE_NAME
        if not path.is_file():
            return
        try:
            read_probe(path, int(network.config.vocab_size))
        except ProbeError as error:
            self.problems.append(str(error))

    def _check_side_files(self, source: Checkpoint, report: dict[str, Any]) -> None:
        for path in source.side_files():
            copy = self.out / path.name
            if not copy.is_file() or copy.read_bytes() != path.read_bytes():
                self.problems.append(f"{path.name} is missing or differs from the source")
        theirs, ours = source.config.document, self.config.document
        for key in sorted(set(theirs) | set(ours)):
            if key != "quantization_config" and theirs.get(key) != ours.get(key):
                self.problems.append(f"{CONFIG_NAME}: {key} differs from the source")

    def _check_source(self, source: Checkpoint, report: dict[str, Any]) -> None:
        """Check that the source is what the release was made of, tensor for tensor."""
        if not report:
            return
        if report.get("fingerprint", {}).get("source") != source.digest():
            self.problems.append(f"{REPORT_NAME} is of another source than {source.folder}")
        if report["recipe"]["method"] == "copy":
            changed = [name for name, error in self.weight_errors.items() if error]
            self.problems.extend(f"{name} has other codes than the source's" for name in sorted(changed))
        read = source.reads.take() if source.reads else {}
        for name, sha256 in report["source"].get("tensors", {}).items():
            if name not in source.tensors:
                self.problems.append(f"{name} is not in the source, and the release was made of it")
            elif sha256 != (read.get(name) or source.tensor_sha256(name)):
                self.problems.append(
                    f"{name} of the source is not what the release was made of: its SHA-256 differs"
                )

    def _result(self, report: dict[str, Any]) -> dict[str, Any]:
        source_bytes = report["source"]["num_bytes"] if report else None
        if self.source is not None:
            source_bytes = sum(shard.num_bytes for shard in self.source.shards.values())
        result: dict[str, Any] = {
            "ok": not self.problems,
            "problems": self.problems,
            "warnings": self.warnings,
            "num_tensors": len(self.tensors),
            "num_quantized": sum(name.endswith(".weight_packed") for name in self.tensors),
            "num_bytes": self.index.num_bytes,
            "num_files": self.num_listed,
            "not_covered": [name for name in NOT_COVERED if (self.out / name).exists()],
            "source_num_bytes": source_bytes,
            "worst": report["summary"]["worst"] if report else [],
        }
        if self.weight_errors:
            ordered = sorted(self.weight_errors.items(), key=lambda item: -item[1])[:WORST_SHOWN]
            result["worst_weight_errors"] = [{"matrix": name, "error": error} for name, error in ordered]
        return result


class _ByteCount:
    """Adds up what threads have checked, and tells it."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Count bytes as checked."""
        with self._lock:
            self._done = min(self._total, self._done + num_bytes)
            if self._on_progress is not None:
                self._on_progress(self._done, self._total)


def num_threads(item_bytes: int, device: torch.device) -> int:
    """Return how many threads check at a time: one a processor, if half the free memory has room for them."""
    free = free_bytes(device) if device.type == "cuda" else available_memory_bytes()
    return max(1, min(num_usable(), free // 2 // max(1, item_bytes), MOST_THREADS))


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Have each operation on tensors run on its caller's thread alone: there are threads enough."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(result: dict[str, Any]) -> str:
    """Return a result in a few lines."""
    lines = [f"wrong     {problem}" for problem in result["problems"]]
    lines += [f"warning   {warning}" for warning in result["warnings"]]
    size = f"size      {format_bytes(result['num_bytes'])}"
    if result["source_num_bytes"]:
        share = result["num_bytes"] / result["source_num_bytes"]
        size += f", the source {format_bytes(result['source_num_bytes'])} ({share:.1%})"
    lines.append(size)
    if result["num_files"]:
        lines.append(
            f"files     {result['num_files']} listed in {REPORT_NAME}; "
            f"not covered: {', '.join(result['not_covered'])}"
        )
    for entry in result["worst"]:
        error, rtn_error = entry["error"], entry["rtn_error"]
        lines.append(f"worst     {entry['matrix']}: error {error:.5f} (round to nearest {rtn_error:.5f})")
    for entry in result.get("worst_weight_errors", []):
        lines.append(f"weights   {entry['matrix']}: {entry['error']:.5f} of its squares lost")
    count = f"{result['num_tensors']} tensors, {result['num_quantized']} quantized matrices"
    lines.append(
        f"ok        {count}" if result["ok"] else f"failed    {len(result['problems'])} problems in {count}"
    )
    return "\n".join(map(visible, lines))


def _same_bytes(one: StoredTensor, source: Checkpoint, name: str) -> bool:
    other = source.tensors[name]
    if one.spec != other.spec:
        return False
    pieces = zip(iterate_bytes(one), source.provider.pieces(other), strict=True)
    return all(ours == theirs for ours, theirs in pieces)
