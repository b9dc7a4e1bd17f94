"""`moe4 verify`: read a release as its users will and name everything that is wrong with it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe4.checkpoint.index import CONFIG_NAME, INDEX_NAME, CheckpointIndex
from moe4.checkpoint.matching import find_matching
from moe4.checkpoint.packed import dequantize, unpack
from moe4.checkpoint.reads import ReadLog
from moe4.checkpoint.release_folder import REPORT_NAME, WORK_NAME, require_space
from moe4.checkpoint.report_file import NOT_COVERED, Report, compare_files, read_report
from moe4.checkpoint.shard import StoredTensor, iterate_bytes, read_tensor
from moe4.checkpoint.source import PLAIN_DTYPES, Checkpoint
from moe4.errors import CheckpointError, MissingFileError, ProbeError
from moe4.files.durable import file_sha256
from moe4.hub.stream import ShardStream
from moe4.model.accounting import LINEAR, Accounting, summarize_names
from moe4.model.architecture import Network
from moe4.model.fused import take_experts_apart
from moe4.probe.form import PROBE_NAME, read_probe
from moe4.quantize.planning.resolve import group_size_warnings
from moe4.quantize.planning.tied_head import compare_tied_head
from moe4.quantize.reporting.layer_record import WORST_SHOWN
from moe4.quantize.transfer.device_memory import require_device, to_device
from moe4.recipe import GROUP_SIZES
from moe4.verify.decoding import SourceDecoder
from moe4.verify.result import Verification, WeightError
from moe4.verify.steps import Matrix, Step, steps_by_shard
from moe4.verify.threads import ByteCount, Progress, one_thread_an_operation, spread

LARGEST_WEIGHT_ERROR = 0.5  # |W - Q|^2 / |W|^2 above this is another tensor's data, not quantization
BYTES_A_CODE = 44  # of memory: codes, and weights of two decoders each of release and source, with copies
BYTES_A_PLAIN_BYTE = 12  # of memory: as stored, and as two decoders give the source's in float32
PACKED_LEAVES = ("weight_packed", "weight_scale", "weight_shape")


def verify(
    out: Path,
    source: Path | None = None,
    *,
    stream: ShardStream | None = None,
    device: str = "cpu",
    family_as_is: bool = False,
    on_progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Check a release; return what was found, with `problems` empty if nothing is wrong.

    Tensors are read and hashed by as many threads as there are processors and memory for, and decoded on
    `device`. stream: fetches the source's shards, which are then not in its folder; `say` is told of each.
    family_as_is: whether the release's family need not be a listed one. Raises CheckpointError's children if
    `out` is no release or `source` no checkpoint at all, and HubError or DiskSpaceError where a shard of it
    cannot be fetched.
    """
    if not os.path.lexists(out / CONFIG_NAME) or not os.path.lexists(out / INDEX_NAME):
        raise MissingFileError(f"{out} is not a release: {CONFIG_NAME} or {INDEX_NAME} is missing")
    original = Checkpoint(source, stream, family_as_is=family_as_is) if source else None
    verifier = _Verifier(out, original, require_device(device), on_progress, say, family_as_is)
    with one_thread_an_operation():
        return verifier.run()


class _Verifier:
    def __init__(
        self,
        out: Path,
        source: Checkpoint | None,
        device: torch.device,
        on_progress: Progress | None,
        say: Callable[[str], None],
        family_as_is: bool,
    ) -> None:
        self.out, self.source, self.device, self.say = out, source, device, say
        if source is not None:
            source.reads = ReadLog()
        self.decoder = SourceDecoder(source) if source is not None else None
        self.hashes: dict[str, str] = {}
        """Of the source's tensors, by name, as they were read."""
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.index = CheckpointIndex(out, self.problems, family_as_is=family_as_is)
        self.config, self.tensors = self.index.config, self.index.tensors
        self.num_listed = 0
        self.report: Report | None = None
        self.scheme: Any = None
        self.group_size = 0
        self.weight_errors: dict[str, float] = {}
        num_bytes = 2 * self.index.num_bytes  # once by tensors, once by files
        self.progress = ByteCount(num_bytes, on_progress)

    @property
    def keeps_codes(self) -> bool:
        """Whether the release says that its codes and scales are the source's own."""
        return self.report is not None and self.report.recipe.method == "copy"

    def run(self) -> Verification:
        """Run every check; one whose ground is gone is left out, as the ground's problem is named."""
        if os.path.lexists(self.out / WORK_NAME):
            self.problems.append(f"{WORK_NAME} is present: the run that wrote this release has not finished")
        self._check_index()
        self._check_config()
        self.report = self._read_report()
        stored = {name.removesuffix("_packed") for name in self.tensors}
        network = Network(self.config, torch.bfloat16, stored)
        if self.source is not None:
            take_experts_apart(self.source, network)
        if self.scheme is not None:
            accounting = Accounting(network, self.config)
            quantized = sorted(self._check_names(accounting))
            for step in self._steps(quantized):
                self._check_step(step)
            self._check_left_out([base for base, _ in quantized], accounting)
            self.warnings += group_size_warnings(self.group_size, network)
        self._check_tied_head(network)
        if self.report is not None:
            self._check_files(self.report)
        self._check_probe(network)
        if self.source is not None:
            self._check_side_files(self.source)
            self._check_source(self.source)
        return self._result()

    def _steps(self, quantized: list[Matrix]) -> Iterator[Step]:
        """Yield what is to be checked at a time: shard by shard where the source's shards are fetched."""
        packed = {base + leaf for base, _ in quantized for leaf in PACKED_LEAVES}
        plain = sorted(set(self.tensors) - packed)
        if self.source is None or not isinstance(self.source.provider, ShardStream):
            yield Step(matrices=quantized, plain=plain)
            return
        provider, listed = self.source.provider, self.report.source.tensors if self.report else {}
        steps = steps_by_shard(self.source, quantized, plain, listed)
        paths = [step.paths for step in steps]
        require_space(provider.work, provider.room(paths))
        provider.expect(paths, self.say)
        for step in steps:
            yield step
            provider.step_done()

    def _check_step(self, step: Step) -> None:
        most = max((rows * columns for _, (rows, columns) in step.matrices), default=0)
        self.problems += spread(self._check_quantized, step.matrices, BYTES_A_CODE * most, self.device)
        most = max((self.tensors[name].spec.num_bytes for name in step.plain), default=0)
        self.problems += spread(self._check_plain_tensor, step.plain, BYTES_A_PLAIN_BYTE * most, self.device)
        if self.source is not None:
            self.hashes |= {name: self.source.tensor_sha256(name) for name in step.unread}

    def _check_index(self) -> None:
        """Check what vLLM reads beside the tensors that the index names, and the index's own sum."""
        for name in self.index.shards:
            if Path(name).name != name:
                self.problems.append(f"{INDEX_NAME} names {name}, which vLLM does not look for in a folder")
        for name, shard_name in self.index.unlisted.items():
            self.problems.append(f"{name} is in {shard_name}, but the index does not list it")
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

    def _check_names(self, accounting: Accounting) -> Iterator[Matrix]:
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
                self.problems.append(f"{name} is quantized, but quantization_config does not say so")
            elif accounting.kind(name) == "unknown":
                self.problems.append(f"{name} has no place in the model that {CONFIG_NAME} describes")

    def _check_quantized(self, matrix: Matrix) -> list[str]:
        """Check one matrix's shapes, dtypes, scales and codes, and its likeness to the source's."""
        base, shape = matrix
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
        wrong = self._check_scales(f"{base}weight_scale", scales)
        if wrong:
            return wrong
        weight, problems = dequantize(unpack(packed), scales), []
        theirs = self._decompress(packed, scales, shape)
        if not torch.equal(weight.to(torch.bfloat16), theirs.to(torch.bfloat16)):
            problems.append(f"{base}weight_packed: compressed-tensors decodes other weights than moe4")
        del theirs
        if self.source is not None:
            problems += self._compare_weight(self.source, base + "weight", weight)
        self.progress.add(sum(tensor.spec.num_bytes for tensor in stored))
        return problems

    def _check_scales(self, name: str, scales: Tensor) -> list[str]:
        """Check that scales are finite and, unless they are the source's own, that none is zero.

        moe4 writes no zero. A source that has some in its own codes keeps them: to vLLM those weights are 0.
        """
        bad = ~torch.isfinite(scales)
        word = "NaN or Inf"
        if not bad.any() and not self.keeps_codes:
            bad, word = scales == 0, "zero"
        count = int(bad.sum())
        if not count:
            return []
        row, group = bad.nonzero()[0].tolist()
        rest = f", and {count - 1} more" if count > 1 else ""
        return [f"{name} holds {word} in row {row}, group {group}{rest}"]

    def _decompress(self, packed: Tensor, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
        from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

        state = {
            "weight_packed": packed,
            "weight_scale": scales,
            "weight_shape": torch.tensor(shape, dtype=torch.int64),
        }
        weight: Tensor = PackedQuantizationCompressor.decompress(state, self.scheme)["weight"]
        return weight

    def _compare_weight(self, source: Checkpoint, name: str, weight: Tensor) -> list[str]:
        if name not in source.tensors or source.tensors[name].spec.shape != tuple(weight.shape):
            return [f"{name} is missing from the source, or has another shape there"]
        original = self._load(source, name).float()
        differs = self.decoder.differs(name, original) if self.decoder else None
        if differs:
            return [differs]
        error = weight_error(weight, original)
        self.weight_errors[name] = error
        if error > LARGEST_WEIGHT_ERROR:
            return [f"{name} does not resemble the source's: its relative squared error is {error:.3g}"]
        return []

    def _load(self, source: Checkpoint, name: str) -> Tensor:
        """Return a tensor of the source, decoded on the device."""
        return source.decode(name, tuple(to_device(piece, self.device) for piece in source.read(name)))

    def _check_plain_tensor(self, name: str) -> list[str]:
        """Check a tensor that is not quantized: finite, and the source's bytes."""
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

    def _read_report(self) -> Report | None:
        """Return the report, or say why nothing can be checked by it."""
        if not (self.out / REPORT_NAME).is_file():
            self.problems.append(
                f"{REPORT_NAME} is missing: nothing says what the release's files should be, "
                "so none of them could be checked"
            )
            return None
        try:
            return read_report(self.out)
        except CheckpointError as error:
            self.problems.append(f"{error}, so none of the release's files could be checked")
            return None

    def _check_files(self, report: Report) -> None:
        """Check every file against the report's list."""
        shards, files = report.release.shards, report.release.files
        if files is None:
            self.problems.append(f"{REPORT_NAME} does not list the release's files, so none could be checked")
            return
        self.num_listed = len(shards) + len(files)
        for name, problem in compare_files(self.out, shards | files, self.progress.add):
            if problem == "is missing" and name in self.index.shards:
                continue  # named already
            if name == PROBE_NAME and "missing" in problem:
                problem += f"; moe4 probe {self.out} makes it again"
            elif name == PROBE_NAME:
                problem += f"; moe4 probe {self.out} --force makes it again"
            self.problems.append(f"{name} {problem}")

    def _check_tied_head(self, network: Network) -> None:
        """Check that a head stored beside embeddings it is tied to is the same."""
        specs = {name: stored.spec for name, stored in self.tensors.items()}
        found = compare_tied_head(
            network, specs, lambda one, other: _same_data(self.tensors[one], self.tensors[other])
        )
        if found is not None:
            self.problems.append(found)

    def _check_probe(self, network: Network) -> None:
        """Check the form of the expected answers."""
        path = self.out / PROBE_NAME
        if not path.is_file():
            return
        try:
            read_probe(path, int(network.config.vocab_size))
        except ProbeError as error:
            self.problems.append(str(error))

    def _check_side_files(self, source: Checkpoint) -> None:
        for path in source.side_files():
            if not is_copy(self.out / path.name, path):
                self.problems.append(f"{path.name} is missing or differs from the source")
        theirs, ours = source.config.document, self.config.document
        for key in sorted(set(theirs) | set(ours)):
            if key != "quantization_config" and theirs.get(key) != ours.get(key):
                self.problems.append(f"{CONFIG_NAME}: {key} differs from the source")

    def _check_source(self, source: Checkpoint) -> None:
        """Check that the source is what the release was made of, tensor for tensor."""
        if self.report is None:
            return
        fingerprint = self.report.fingerprint
        if fingerprint is None or fingerprint.source != source.digest():
            self.problems.append(f"{REPORT_NAME} describes another source, not {source.folder}")
        if self.keeps_codes:
            changed = [name for name, error in self.weight_errors.items() if error]
            self.problems.extend(f"the codes of {name} differ from the source's" for name in sorted(changed))
        read = self.hashes | (source.reads.take() if source.reads else {})
        for name, sha256 in self.report.source.tensors.items():
            if name not in source.tensors:
                self.problems.append(f"{name} is not in the source, and the release was made of it")
            elif sha256 != (read.get(name) or source.tensor_sha256(name)):
                self.problems.append(
                    f"{name} of the source is not what the release was made of: its SHA-256 differs"
                )

    def _result(self) -> Verification:
        source_bytes = self.report.source.num_bytes if self.report else None
        if self.source is not None:
            source_bytes = sum(shard.num_bytes for shard in self.source.shards.values())
        ordered = sorted(self.weight_errors.items(), key=lambda item: -item[1])[:WORST_SHOWN]
        return Verification(
            problems=self.problems,
            warnings=self.warnings,
            num_tensors=len(self.tensors),
            num_quantized=sum(name.endswith(".weight_packed") for name in self.tensors),
            num_bytes=self.index.num_bytes,
            num_files=self.num_listed,
            not_covered=[name for name in NOT_COVERED if (self.out / name).exists()],
            source_num_bytes=source_bytes,
            worst=self.report.summary.worst if self.report else [],
            worst_weight_errors=[WeightError(matrix=name, error=error) for name, error in ordered],
        )


def weight_error(weight: Tensor, original: Tensor) -> float:
    """Return |W - Q|^2 / |W|^2; a release may have at most LARGEST_WEIGHT_ERROR."""
    return float((weight - original).square().sum() / original.square().sum().clamp(min=1e-30))


def is_copy(copy: Path, original: Path) -> bool:
    """Say whether a side file of a release is the source's, byte for byte."""
    if not copy.is_file() or copy.stat().st_size != original.stat().st_size:
        return False  # without reading it: a sparse file may be of any size
    return file_sha256(copy) == file_sha256(original)


def _same_bytes(one: StoredTensor, source: Checkpoint, name: str) -> bool:
    if one.spec != source.tensors[name].spec:
        return False
    pieces = zip(iterate_bytes(one), source.pieces(name), strict=True)
    return all(ours == theirs for ours, theirs in pieces)


def _same_data(one: StoredTensor, other: StoredTensor) -> bool:
    return all(a == b for a, b in zip(iterate_bytes(one), iterate_bytes(other), strict=True))
