"""llama.cpp: `mul_mat_id` on Q4_0 for gate, up and down, through ggml's C interface.

Q4_0 is groups of 32 codes + 8, each with a float16 scale. The layer's codes fit as they are, and its scales
are repeated for the narrower groups, so the product is the same up to the rounding of scales below
float16's normal range. ggml rounds activations to eight bits, a scale for 32 (Q8_0).
"""

import ctypes
import time
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experts.layer import Call, Layer
from experts.peers.engine import AbsentError, Run, Setting, Variant

F32, Q4_0, I32 = 0, 2, 26  # of enum ggml_type
GROUP = 32


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class Ggml:
    """The functions we call, with their types; `ggml.mul` is `ggml_mul`. Raises AbsentError."""

    FUNCTIONS = (
        ("ggml_init", c_void_p, (InitParams,)),
        ("ggml_free", None, (c_void_p,)),
        ("ggml_new_tensor_2d", c_void_p, (c_void_p, c_int, c_int64, c_int64)),
        ("ggml_new_tensor_3d", c_void_p, (c_void_p, c_int, c_int64, c_int64, c_int64)),
        ("ggml_mul_mat_id", c_void_p, (c_void_p, c_void_p, c_void_p, c_void_p)),
        ("ggml_swiglu_split", c_void_p, (c_void_p, c_void_p, c_void_p)),
        ("ggml_mul", c_void_p, (c_void_p, c_void_p, c_void_p)),
        ("ggml_add", c_void_p, (c_void_p, c_void_p, c_void_p)),
        ("ggml_view_2d", c_void_p, (c_void_p, c_void_p, c_int64, c_int64, c_size_t, c_size_t)),
        ("ggml_set_input", None, (c_void_p,)),
        ("ggml_set_output", None, (c_void_p,)),
        ("ggml_new_graph", c_void_p, (c_void_p,)),
        ("ggml_build_forward_expand", None, (c_void_p, c_void_p)),
        ("ggml_gallocr_new", c_void_p, (c_void_p,)),
        ("ggml_gallocr_alloc_graph", c_bool, (c_void_p, c_void_p)),
        ("ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, (c_void_p, c_void_p)),
        ("ggml_backend_tensor_set", None, (c_void_p, c_void_p, c_size_t, c_size_t)),
        ("ggml_backend_tensor_get", None, (c_void_p, c_void_p, c_size_t, c_size_t)),
        ("ggml_backend_graph_compute", c_int, (c_void_p, c_void_p)),
        ("ggml_backend_reg_dev_get", c_void_p, (c_void_p, c_size_t)),
        ("ggml_backend_reg_get_proc_address", c_void_p, (c_void_p, c_char_p)),
        ("ggml_backend_buft_name", c_char_p, (c_void_p,)),
        ("ggml_backend_cpu_init", c_void_p, ()),
        ("ggml_backend_cpu_set_n_threads", None, (c_void_p, c_int)),
        ("ggml_backend_cpu_buffer_type", c_void_p, ()),
        ("ggml_backend_cpu_reg", c_void_p, ()),
    )

    def __init__(self, folder: Path) -> None:
        libraries = []
        for name in ("libggml-base.so", "libggml-cpu.so"):
            file = next(folder.rglob(name), None)
            if file is None:
                raise AbsentError(f"no {name} under {folder}")
            libraries.append(ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL))
        for name, result, arguments in self.FUNCTIONS:
            function = next(getattr(library, name) for library in libraries if hasattr(library, name))
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"ggml_{name} is not among FUNCTIONS")

    def context(self) -> int:
        """Return a place for descriptions of tensors, which hold no data."""
        return self.init(InitParams(1 << 20, None, True))

    def repacking_buffer(self) -> int:
        """Return the kind of buffer that lays weights out for this processor. Raises AbsentError."""
        registry = self.backend_cpu_reg()
        address = self.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        list_kinds = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)
        kinds = list_kinds(self.backend_reg_dev_get(registry, 0))
        place = 0
        while kinds[place]:
            if b"REPACK" in self.backend_buft_name(kinds[place]):
                return kinds[place]
            place += 1
        raise AbsentError("ggml has no other layout of Q4_0 for this processor")


def q4_0_blocks(packed: Tensor, scale: Tensor, group_size: int) -> Tensor:
    """Return uint8 [experts, rows, columns / 32, 18]: a float16 scale, then 16 bytes of codes + 8.

    Byte i has code i in its lower half and code i + 16 in its upper half. packed and scale as in `Layer`.
    """
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    scales = scale.repeat_interleave(group_size // GROUP, dim=-1).half()
    blocks = torch.empty(*scales.shape, 2 + GROUP // 2, dtype=torch.uint8)
    blocks[..., :2] = scales.unsqueeze(-1).view(torch.uint8)
    for expert, words in enumerate(packed):  # one at a time: the codes take four times the memory
        codes = ((words.unsqueeze(-1) >> shifts) & 15).to(torch.uint8).flatten(-2).unflatten(-1, (-1, GROUP))
        blocks[expert, ..., 2:] = codes[..., :16] | codes[..., 16:] << 4
    return blocks


class Graph:
    """The computation for one number of tokens, as llama.cpp builds it for a layer's routed experts."""

    def __init__(
        self, ggml: Ggml, layer: Layer, weights: tuple[int, ...], allocator: int, tokens: int
    ) -> None:
        self.ggml, self.tokens, self.shape = ggml, tokens, (tokens, layer.hidden)
        hidden, top_k = layer.hidden, layer.top_k
        gate, up, down = weights
        self.context = c = ggml.context()
        x = ggml.new_tensor_3d(c, F32, hidden, 1, tokens)
        ids = ggml.new_tensor_2d(c, I32, top_k, tokens)
        factors = ggml.new_tensor_3d(c, F32, 1, top_k, tokens)
        self.inputs = (x, factors, ids)
        for tensor in self.inputs:
            ggml.set_input(tensor)
        up_x, gate_x = ggml.mul_mat_id(c, up, x, ids), ggml.mul_mat_id(c, gate, x, ids)
        y = ggml.mul(c, ggml.mul_mat_id(c, down, ggml.swiglu_split(c, gate_x, up_x), ids), factors)
        parts = [ggml.view_2d(c, y, hidden, tokens, 4 * hidden * top_k, 4 * hidden * k) for k in range(top_k)]
        out = parts[0]
        for part in parts[1:]:
            out = ggml.add(c, out, part)
        ggml.set_output(out)
        self.out, self.graph = out, ggml.new_graph(c)
        ggml.build_forward_expand(self.graph, out)
        if not ggml.gallocr_alloc_graph(allocator, self.graph):
            raise MemoryError("ggml has no memory for its graph")

    def compute(self, backend: int, call: Call) -> tuple[float, Tensor]:
        """Time the graph alone: in llama.cpp, its inputs are there in float32 already."""
        x, topk_weights, topk_ids = call
        values = (x.float(), topk_weights.float().contiguous(), topk_ids.to(torch.int32).contiguous())
        for tensor, value in zip(self.inputs, values, strict=True):
            self.ggml.backend_tensor_set(tensor, value.data_ptr(), 0, value.nbytes)
        start = time.perf_counter()
        status = self.ggml.backend_graph_compute(backend, self.graph)
        seconds = time.perf_counter() - start
        if status:
            raise RuntimeError(f"ggml_backend_graph_compute gave {status}")
        out = torch.empty(self.shape, dtype=torch.float32)
        self.ggml.backend_tensor_get(self.out, out.data_ptr(), 0, out.nbytes)
        return seconds, out

    def free(self) -> None:
        self.ggml.free(self.context)


def build(layer: Layer, setting: Setting, *, repack: bool) -> Run:
    ggml = Ggml(setting.environment / "ggml")
    backend = ggml.backend_cpu_init()
    ggml.backend_cpu_set_n_threads(backend, setting.num_threads)
    allocator = ggml.gallocr_new(ggml.backend_cpu_buffer_type())
    experts, hidden, inter = layer.experts, layer.hidden, layer.inter
    context = ggml.context()
    gate, up = (ggml.new_tensor_3d(context, Q4_0, hidden, inter, experts) for _ in range(2))
    down = ggml.new_tensor_3d(context, Q4_0, inter, hidden, experts)
    kind = ggml.repacking_buffer() if repack else ggml.backend_cpu_buffer_type()
    if not ggml.backend_alloc_ctx_tensors_from_buft(context, kind):
        raise MemoryError("ggml has no memory for the weights")
    for tensor, packed, scale in (
        (gate, layer.w13_packed[:, :inter], layer.w13_scale[:, :inter]),
        (up, layer.w13_packed[:, inter:], layer.w13_scale[:, inter:]),
        (down, layer.w2_packed, layer.w2_scale),
    ):
        blocks = q4_0_blocks(packed, scale, layer.group_size)
        ggml.backend_tensor_set(tensor, blocks.data_ptr(), 0, blocks.nbytes)
    graph: Graph | None = None

    def run(call: Call) -> tuple[float, Tensor]:
        nonlocal graph
        tokens = len(call[0])
        if graph is None or graph.tokens != tokens:
            if graph:
                graph.free()
            graph = Graph(ggml, layer, (gate, up, down), allocator, tokens)
        return graph.compute(backend, call)

    return run


NOTE = "mul_mat_id on Q4_0: float16 scales for 32, {}; activations rounded to INT8, a scale for 32 (Q8_0)"
VARIANTS = {
    "llama.cpp Q4_0 repacked": Variant(
        build=partial(build, repack=True),
        note=NOTE.format("rows interleaved as llama.cpp does by default"),
        scale_dtype=torch.float16,
    ),
    "llama.cpp Q4_0": Variant(
        build=partial(build, repack=False),
        note=NOTE.format("laid out as in a file (mapped, not repacked)"),
        scale_dtype=torch.float16,
    ),
}
