"""One decoder layer: attend, route, stream the experts (docs/quantization.md).

All calibration tokens go through a layer before the next is read. Peak memory is one layer without its
experts, one expert with its Hessians and tokens, and what the page cache keeps of the activations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from moe4.calibration.activations import Activations, ResidentActivations
from moe4.checkpoint.report_file import ExpertRecord, LayerRecord, MatrixRecord
from moe4.checkpoint.shard import ShardWriter
from moe4.errors import CalibrationError
from moe4.gptq.solver import QuantizedMatrix, factorize, keep_codes, quantize_gptq, quantize_rtn
from moe4.model.names import Part
from moe4.model.outline import ExpertShape
from moe4.quantize.layer.attend import LayerRunner, attend_and_route, inputs_path
from moe4.quantize.layer.expert_stream import ExpertStream
from moe4.quantize.layer.host_solver import HostSolver
from moe4.quantize.layer.workbench import (
    Workbench,
    copy_tensors,
    require_finite_error,
    stored_tensors,
    write_all,
)
from moe4.quantize.planning.release_plan import QuantizedWeight, ShardPlan, expert_weight
from moe4.quantize.reporting.layer_record import expert_record, matrix_record
from moe4.quantize.transfer.device_memory import make_activations
from moe4.quantize.transfer.ranks import Parcel
from moe4.quantize.transfer.reader import ExpertReader, LayerReader, Stored

if TYPE_CHECKING:
    from moe4.quantize.gpu.solver import DeviceSolver


def quantize_layer_alone(bench: Workbench, plan: ShardPlan, writer: ShardWriter | None) -> LayerRecord:
    """Round every planned weight of a layer to nearest, or keep its codes; no activations are needed.

    Only rank 0 has a writer, and returns a whole record.
    """
    record, probe = begin_record(plan), bench.probe
    linears = [weight for stage in plan.linear_stages for weight in stage]

    def round_linear(number: int) -> Parcel:
        weight = linears[number]
        result = quantize_alone(bench, weight, bench.checkpoint.read(weight.name))
        return Parcel(facts=matrix_record(result).as_dict(), stored=stored_tensors(weight, result))

    for number, parcel in bench.ranks.spread(len(linears), round_linear):
        assert writer is not None
        write_all(writer, parcel.stored)
        if probe is not None:
            probe.released.update(parcel.stored)
        record.linears[_local_name(bench, plan, linears[number])] = MatrixRecord(**parcel.facts)
    if writer is not None:
        copy_tensors(bench, plan, writer)
    if probe is not None:
        probe.attend(plan.layer_number)
    if plan.experts is not None:
        experts = plan.experts
        with ExpertReader(bench.checkpoint, experts, bench.ranks.own_numbers(experts.num_experts)) as reader:
            for expert, parcel in bench.ranks.spread(
                experts.num_experts, lambda expert: round_expert(bench, experts, expert, reader.take(expert))
            ):
                assert writer is not None
                if probe is not None:
                    probe.add_expert(expert, parcel.tensors)
                write_all(writer, parcel.stored)
                record.experts.append(ExpertRecord(**parcel.facts))
                bench.progress.expert_done(record.layer, expert)
    bench.progress.layer_done(record.layer)
    return record


def quantize_layer_gptq(
    bench: Workbench,
    plan: ShardPlan,
    writer: ShardWriter | None,
    sequences: Sequence[Sequence[int]],
    hidden: Activations,
    work: Path,
) -> tuple[LayerRecord, Activations | None]:
    """Quantize a layer on its calibration inputs `hidden`; return its record and its output.

    sequences: the token ids of calibration.

    The output, float32 [tokens, hidden], is that of the quantized layer, on a GPU or mapped in `work`.
    Only rank 0 has a writer, and returns a whole record and an output.
    """
    layer, record = plan.layer_number, begin_record(plan)
    keep = None if bench.probe is None else bench.probe.stored
    _read_ahead(bench, layer)
    reader = LayerReader(bench.checkpoint, plan, writer, bench.device, keep, bench.ahead)
    module = bench.network.build_layer(layer, reader.load_and_keep, bench.device)
    runner = LayerRunner(bench, layer, module, sequences, hidden)
    for stage in plan.linear_stages:
        _quantize_linears(bench, plan, stage, runner, reader, writer, record)
    reader.copy_rest()
    _read_ahead(bench, layer + 1)
    total = None
    if writer is not None:
        total = _make_total(bench, plan, runner, total_path(work, layer))
    if plan.experts is None:
        runner.fill(total)
        del module, runner, hidden
        if bench.probe is not None:
            bench.probe.attend(layer)
    else:
        routing = attend_and_route(bench, plan.experts, runner, total, work)
        later = None if runner.adds_experts or total is None else runner
        del module, runner, hidden
        solver = solver_class(bench.device)(bench, plan.experts, layer, routing)
        ExpertStream(bench, plan.experts, solver).run(total, writer, record)
        if later is not None and total is not None:
            total = _complete(bench, later, total, work)
    if total is not None and not total.is_finite():
        raise CalibrationError(f"calibration activations hold NaN or Inf in the output of layer {layer}")
    bench.progress.layer_done(layer)
    return record, total


def _make_total(bench: Workbench, plan: ShardPlan, runner: LayerRunner, path: Path) -> Activations:
    """Return room for the layer's output; or zeros, for its experts' sum, if that is not all of the rest."""
    num_tokens, dtype = sum(int(batch.is_token.sum()) for batch in runner.batches), torch.float32
    if plan.experts is None or runner.adds_experts:
        return make_activations(path, (num_tokens, bench.network.state_width), dtype, bench.device)
    sums = make_activations(path, (num_tokens, plan.experts.hidden_size), dtype, bench.device)
    if isinstance(sums, ResidentActivations):
        sums.values.zero_()
    return sums


def _complete(bench: Workbench, runner: LayerRunner, sums: Activations, work: Path) -> Activations:
    """Return the output, float32, of a layer that does more with its experts' sum than add it."""
    shape = (sums.shape[0], bench.network.state_width)
    total = make_activations(completed_path(work, runner.layer), shape, torch.float32, bench.device)
    runner.complete(sums, total)
    return total


def _read_ahead(bench: Workbench, layer: int) -> None:
    """On a GPU, have the files read that a layer needs beside its routed experts."""
    if bench.ahead is not None and layer < bench.network.num_layers:
        bench.ahead.begin(layer, bench.network.layer_tensors(layer))


def total_path(work: Path, layer: int) -> Path:
    """Return where the sum of a layer's output lies while it is run, unless it is on a GPU."""
    return work / f"total-{layer:05d}.partial"


def completed_path(work: Path, layer: int) -> Path:
    """Return where the output of a layer lies that does more with that sum than add it."""
    return work / f"completed-{layer:05d}.partial"


def work_paths(work: Path, layer: int) -> list[Path]:
    """Return the files that a layer may leave when it has been run."""
    return [path(work, layer) for path in (total_path, completed_path, inputs_path)]


def solver_class(device: torch.device) -> "type[HostSolver] | type[DeviceSolver]":
    """Return what solves experts on a device: one after another, or on a GPU in batches."""
    if device.type != "cuda":
        return HostSolver
    from moe4.quantize.gpu.solver import DeviceSolver  # it needs Triton

    return DeviceSolver


def _quantize_linears(
    bench: Workbench,
    plan: ShardPlan,
    stage: list[QuantizedWeight],
    runner: LayerRunner,
    reader: LayerReader,
    writer: ShardWriter | None,
    record: LayerRecord,
) -> None:
    """Quantize Linears that share an input; put the quantized weights into the layer for the next stage."""
    names = [_local_name(bench, plan, weight) for weight in stage]
    modules = [runner.module.get_submodule(name) for name in names]
    if plan.experts is not None:
        runner.ignore_experts()
    hessian = runner.observe(modules[0], stage[0].shape[1])
    settings = bench.recipe.gptq
    originals = [reader.load(weight.name).to(bench.device).float() for weight in stage]
    results = quantize_gptq(originals, factorize(hessian.mean(), settings), bench.recipe.group_size, settings)
    for weight, module, name, result in zip(stage, modules, names, results, strict=True):
        require_finite_error(weight, result)
        module.weight = nn.Parameter(bench.served(result), requires_grad=False)
        record.linears[name] = matrix_record(result)
        if writer is not None:
            tensors = stored_tensors(weight, result)
            write_all(writer, tensors)
            if bench.probe is not None:
                bench.probe.released.update(tensors)


def quantize_alone(bench: Workbench, weight: QuantizedWeight, stored: Stored) -> QuantizedMatrix:
    """Return a weight rounded to nearest, or of method `copy` with the codes that it has."""
    original = bench.decode(weight, stored)  # which also sees that it is finite
    if bench.recipe.method == "copy":
        return keep_codes(stored[0].to(bench.device), stored[1].to(bench.device))
    return quantize_rtn(original, bench.recipe.group_size)


def round_expert(bench: Workbench, experts: ExpertShape, expert: int, stored: dict[Part, Stored]) -> Parcel:
    """Return an expert's weights rounded to nearest, or as they are."""
    stored_as, results = {}, {}
    for part in experts.parts:
        weight = expert_weight(experts, expert, part)
        results[part] = quantize_alone(bench, weight, stored[part])
        stored_as.update(stored_tensors(weight, results[part]))
    probed = {} if bench.probe is None else bench.probe.run_expert(experts, expert, stored, results)
    return Parcel(facts=expert_record(None, results).as_dict(), tensors=probed, stored=stored_as)


def begin_record(plan: ShardPlan) -> LayerRecord:
    """Return the record of a layer of which nothing is done yet."""
    return LayerRecord(layer=plan.layer_number, shard=plan.file_name, experts=[], linears={})


def _local_name(bench: Workbench, plan: ShardPlan, weight: QuantizedWeight) -> str:
    prefix = bench.network.layer_prefix(plan.layer_number)
    return weight.name.removeprefix(prefix).removesuffix(".weight")
