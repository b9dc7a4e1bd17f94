"""`moe4 verify`: read a release as its users will and name everything that is wrong with it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe4.checkpoint.durable import file_sha256
from moe4.checkpoint.packed import dequantize, unpack
from moe4.checkpoint.release import REPORT_NAME, WORK_NAME, format_bytes
from moe4.checkpoint.shard import StoredTensor, iterate_bytes, read_shard, read_tensor
from moe4.checkpoint.source import CONFIG_NAME, INDEX_NAME, Checkpoint, read_json_object
from moe4.errors import CheckpointError, MissingFileError, ProbeError
from moe4.escape import visible
from moe4.model.architecture import PARTS, Network
from moe4.probe.form import PROBE_NAME, read_probe
from moe4.quantize.audit import WORST_SHOWN
from moe4.quantize.plan import DROPPED_SUFFIX, expert_weight, group_size_warnings
from moe4.recipe import GROUP_SIZES

LARGEST_WEIGHT_ERROR = 0.5  # |W - Q|^2 / |W|^2 above this is another tensor's data, not quantization
LINEAR = re.compile(r"(_proj|_proj_with_mqa|\.experts\.\d+\.w[123])\.weight$")
PACKED_LEAVES = ("weight_packed", "weight_scale", "weight_shape")


def verify(out: Path, source: Path | None = None) -> dict[str, Any]:
    """Check a release; return what was found, with `problems` empty if nothing is wrong.

    Raises CheckpointError's children if `out` is no release or `source` no checkpoint at all.
    """
    if not out.is_dir() or not (out / CONFIG_NAME).is_file() or not (out / INDEX_NAME).is_file():
        raise MissingFileError(f"{out} is no release: it has no {CONFIG_NAME} or no {INDEX_NAME}")
    verifier = _Verifier(out, Checkpoint(source) if source else None)
    return verifier.run()


class _Verifier:
    def __init__(self, out: Path, source: Checkpoint | None) -> None:
        self.out, self.source = out, source
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.config = read_json_object(out / CONFIG_NAME)
        self.index = read_json_object(out / INDEX_NAME)
        self.tensors: dict[str, StoredTensor] = {}
        self.num_bytes = 0
        self.scheme: Any = None
        self.group_size = 0
        self.weight_errors: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Run every check; one whose ground is gone is left out, as the ground's problem is named."""
        if (self.out / WORK_NAME).exists():
            self.problems.append(f"{WORK_NAME} is there: the run that wrote this release has not finished")
        self._read_shards()
        self._check_config()
        network = Network(self.config, torch.bfloat16)
        if self.scheme is not None:
            quantized = sorted(self._check_names(network))
            for base, shape in quantized:
                self._check_quantized(base, shape)
            self._check_plain([base for base, _ in quantized])
            self.warnings = group_size_warnings(self.group_size, network)
        report = self._check_report()
        self._check_probe(network, report)
        if self.source is not None:
            self._check_side_files(self.source, report)
        return self._result(report)

    def _read_shards(self) -> None:
        weight_map = self.index.get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{self.out / INDEX_NAME} has no weight_map")
        for shard_name in sorted(set(weight_map.values())):
            if Path(shard_name).name != shard_name:
                self.problems.append(f"{INDEX_NAME} names {shard_name}, which is not a file in the folder")
                continue
            try:
                shard = read_shard(self.out / shard_name)
            except CheckpointError as error:
                self.problems.append(str(error))
                continue
            self.num_bytes += shard.num_bytes
            listed = {name for name, place in weight_map.items() if place == shard_name}
            for name in sorted(listed - set(shard.tensors)):
                self.problems.append(f"{name} is not in {shard_name}, where the index has it")
            for name in sorted(set(shard.tensors) - listed):
                self.problems.append(f"{name} is in {shard_name}, and the index does not say so")
            self.tensors.update({name: shard.tensors[name] for name in listed & set(shard.tensors)})
        total = sum(stored.spec.num_bytes for stored in self.tensors.values())
        if self.index.get("metadata", {}).get("total_size") != total:
            self.problems.append(f"{INDEX_NAME}: total_size should be {total}")

    def _check_config(self) -> None:
        """Check that compressed-tensors reads the config and vLLM takes what it says."""
        from compressed_tensors.quantization import QuantizationConfig

        quantization = self.config.get("quantization_config")
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

    def _needed(self, network: Network) -> dict[str, tuple[int, ...]]:
        """Return every weight the model is made of, with its shape, under its unquantized name."""
        vocabulary = (int(network.config.vocab_size), int(network.config.hidden_size))
        needed: dict[str, tuple[int, ...]] = {
            network.embedding_name: vocabulary,
            network.norm_name: vocabulary[1:],
        }
        if not self.config.get("tie_word_embeddings"):
            needed[network.head_name] = vocabulary
        for layer in range(network.num_layers):
            needed.update(network.layer_tensors(layer))
            experts = network.experts[layer]
            if experts:
                weights = (
                    expert_weight(experts, expert, part)
                    for expert in range(experts.num_experts)
                    for part in PARTS
                )
                needed.update({weight.name: weight.shape for weight in weights})
        return needed

    def _check_names(self, network: Network) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Check that every tensor is there; yield each quantized matrix without its leaf, and its shape."""
        ignore = self.config["quantization_config"].get("ignore") or []
        known: set[str] = set()
        for name, shape in self._needed(network).items():
            base = name.removesuffix("weight")
            if LINEAR.search(name) and not _is_ignored(name.removesuffix(".weight"), ignore):
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

    def _check_quantized(self, base: str, shape: tuple[int, ...]) -> None:
        """Check one matrix's shapes, dtypes, scales and codes, and its likeness to the source's."""
        rows, columns = shape
        expected = {
            "weight_packed": ("I32", (rows, columns // 8)),
            "weight_scale": ("BF16", (rows, columns // self.group_size)),
            "weight_shape": ("I64", (2,)),
        }
        for leaf, want in expected.items():
            spec = self.tensors[base + leaf].spec
            if (spec.dtype, spec.shape) != want:
                self.problems.append(
                    f"{base}{leaf} must be {want[0]} {list(want[1])}, found {spec.dtype} {list(spec.shape)}"
                )
                return
        packed, scales, stored_shape = (read_tensor(self.tensors[base + leaf]) for leaf in PACKED_LEAVES)
        if stored_shape.tolist() != list(shape):
            self.problems.append(f"{base}weight_shape must be {list(shape)}, found {stored_shape.tolist()}")
            return
        if not torch.isfinite(scales).all() or bool((scales == 0).any()):
            self.problems.append(f"{base}weight_scale holds zero, NaN or Inf")
            return
        weight = dequantize(unpack(packed), scales)
        theirs = self._decompress(packed, scales, shape)
        if not torch.equal(weight.to(torch.bfloat16), theirs.to(torch.bfloat16)):
            self.problems.append(f"{base}weight_packed: compressed-tensors decodes other weights than moe4")
        if self.source is not None:
            self._compare_weight(self.source, base + "weight", weight)

    def _decompress(self, packed: Tensor, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
        from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

        state = {"weight_packed": packed, "weight_scale": scales, "weight_shape": torch.tensor(shape)}
        weight: Tensor = PackedQuantizationCompressor.decompress(state, self.scheme)["weight"]
        return weight

    def _compare_weight(self, source: Checkpoint, name: str, weight: Tensor) -> None:
        if name not in source.tensors or source.tensors[name].spec.shape != tuple(weight.shape):
            self.problems.append(f"{name} has another shape in the source, or is not there")
            return
        original = source.load(name).float()
        error = float((weight - original).square().sum() / original.square().sum().clamp(min=1e-30))
        self.weight_errors[name] = error
        if error > LARGEST_WEIGHT_ERROR:
            self.problems.append(f"{name} is not like the source's: {error:.3g} of its squares are lost")

    def _check_plain(self, quantized: list[str]) -> None:
        """Check tensors that are not quantized: finite, and the source's bytes."""
        packed = {base + leaf for base in quantized for leaf in PACKED_LEAVES}
        for name in sorted(set(self.tensors) - packed):
            stored = self.tensors[name]
            tensor = read_tensor(stored)
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                self.problems.append(f"{name} holds NaN or Inf")
            if self.source is not None and name not in self.source.tensors:
                self.problems.append(f"{name} is not in the source")
            elif self.source is not None and self.source.is_fp8(name):
                if not torch.equal(self.source.load(name).to(torch.bfloat16), tensor):
                    self.problems.append(f"{name} is not the source's FP8 weight in BF16")
            elif self.source is not None and not _same_bytes(stored, self.source.tensors[name]):
                self.problems.append(f"{name} differs from the source")
        if self.source is not None:
            kept = set(self.tensors) | {base + "weight" for base in quantized}
            for name in sorted(set(self.source.tensors) - kept):
                if not name.endswith(DROPPED_SUFFIX):
                    self.problems.append(f"{name} of the source is missing")

    def _check_report(self) -> dict[str, Any]:
        path = self.out / REPORT_NAME
        if not path.is_file():
            return {}
        report = read_json_object(path)
        for name, entry in report.get("release", {}).get("shards", {}).items():
            if (self.out / name).is_file() and file_sha256(self.out / name) != entry.get("sha256"):
                self.problems.append(f"{name} is not the file {REPORT_NAME} describes: its SHA-256 differs")
        return report

    def _check_probe(self, network: Network, report: dict[str, Any]) -> None:
        """Check the expected answers: their form, and that they are the file the report describes."""
        path, entry = self.out / PROBE_NAME, report.get("probe") or {}
        if not path.is_file():
            if "sha256" in entry:
                self.problems.append(f"{PROBE_NAME} is missing; moe4 probe {self.out} makes it again")
            return
        if "sha256" in entry and file_sha256(path) != entry["sha256"]:
            self.problems.append(
                f"{PROBE_NAME} is not the file {REPORT_NAME} describes: its SHA-256 differs; "
                f"moe4 probe {self.out} --force makes it again"
            )
        try:
            read_probe(path, int(network.config.vocab_size))
        except ProbeError as error:
            self.problems.append(str(error))

    def _check_side_files(self, source: Checkpoint, report: dict[str, Any]) -> None:
        for path in source.side_files():
            copy = self.out / path.name
            if not copy.is_file() or copy.read_bytes() != path.read_bytes():
                self.problems.append(f"{path.name} is missing or differs from the source")
        for key in sorted(set(source.config) | set(self.config)):
            if key != "quantization_config" and source.config.get(key) != self.config.get(key):
                self.problems.append(f"{CONFIG_NAME}: {key} differs from the source")
        if report and report["fingerprint"]["source"] != source.digest():
            self.problems.append(f"{REPORT_NAME} is of another source than {source.folder}")

    def _result(self, report: dict[str, Any]) -> dict[str, Any]:
        source_bytes = report.get("source", {}).get("num_bytes")
        if self.source is not None:
            source_bytes = sum(shard.num_bytes for shard in self.source.shards.values())
        result: dict[str, Any] = {
            "ok": not self.problems,
            "problems": self.problems,
            "warnings": self.warnings,
            "num_tensors": len(self.tensors),
            "num_quantized": sum(name.endswith(".weight_packed") for name in self.tensors),
            "num_bytes": self.num_bytes,
            "source_num_bytes": source_bytes,
            "worst": report.get("summary", {}).get("worst", []),
        }
        if self.weight_errors:
            ordered = sorted(self.weight_errors.items(), key=lambda item: -item[1])[:WORST_SHOWN]
            result["worst_weight_errors"] = [{"matrix": name, "error": error} for name, error in ordered]
        return result


def describe(result: dict[str, Any]) -> str:
    """Return a result in a few lines."""
    lines = [f"wrong     {problem}" for problem in result["problems"]]
    lines += [f"warning   {warning}" for warning in result["warnings"]]
    size = f"size      {format_bytes(result['num_bytes'])}"
    if result["source_num_bytes"]:
        share = result["num_bytes"] / result["source_num_bytes"]
        size += f", the source {format_bytes(result['source_num_bytes'])} ({share:.1%})"
    lines.append(size)
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


def _is_ignored(module: str, ignore: list[str]) -> bool:
    """Match as compressed-tensors and vLLM do: a whole name, or a pattern from the start."""
    return any(
        re.match(entry[3:], module) is not None if entry.startswith("re:") else entry == module
        for entry in ignore
    )


def _same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    if one.spec != other.spec:
        return False
    return all(a == b for a, b in zip(iterate_bytes(one), iterate_bytes(other), strict=True))
