"""Experts that lie fused in a file, in every order that transformers' modules hold them, taken apart.

What is found must make the same of tokens as the module whose weights they are.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GptOssConfig, Llama4TextConfig, Qwen3MoeConfig, Qwen3VLMoeTextConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from moe4.checkpoint import shard
from moe4.checkpoint.reads import ReadLog
from moe4.checkpoint.source import Checkpoint
from moe4.errors import TensorError
from moe4.model.fused import take_experts_apart
from moe4.model.layouts import FusedLayout, find_layout
from moe4.model.outline import ExpertShape
from moe4.verify.decoding import SourceDecoder

EXPERTS, HIDDEN, WIDTH, TOKENS = 4, 96, 64, 6
PREFIX = "model.layers.0.mlp.experts"
SIZES: dict[str, Any] = {"hidden_size": HIDDEN, "num_attention_heads": 2, "num_hidden_layers": 1}
HELD = {"gate_up_proj": 2 * WIDTH, "down_proj": HIDDEN}


def make_experts(family: str) -> Any:
    """Return transformers' module with random weights in float32."""
    torch.manual_seed(0)
    local = {"num_local_experts": EXPERTS, "intermediate_size": WIDTH}
    module: nn.Module = {
        "gpt_oss": lambda: GptOssExperts(GptOssConfig(**SIZES, **local)),
        "llama4": lambda: Llama4TextExperts(Llama4TextConfig(**SIZES, **local)),
        "qwen3_moe": lambda: Qwen3MoeExperts(
            Qwen3MoeConfig(**SIZES, num_experts=EXPERTS, moe_intermediate_size=WIDTH)
        ),
        "qwen3_vl_moe": lambda: Qwen3VLMoeTextExperts(
            Qwen3VLMoeTextConfig(**SIZES, num_experts=EXPERTS, moe_intermediate_size=WIDTH)
        ),
    }[family]()
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter) / 8
    return module.eval().requires_grad_(False)


def open_apart(
    folder: Path, tensors: dict[str, Tensor], layout: FusedLayout, quantization: dict[str, Any] | None = None
) -> Checkpoint:
    """Write fused tensors as a checkpoint and return it with its experts taken apart."""
    named = {f"{PREFIX}.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors")
    text = "{}" if quantization is None else f'{{"quantization_config": {quantization}}}'.replace("'", '"')
    (folder / "config.json").write_text(text)
    experts = ExpertShape(
        num_experts=EXPERTS,
        hidden_size=HIDDEN,
        width=WIDTH,
        prefix=PREFIX,
        layout=layout,
        fused={f"{PREFIX}.gate_up_proj": ("gate", "up"), f"{PREFIX}.down_proj": ("down",)},
    )
    network: Any = SimpleNamespace(experts=[experts], num_layers=1, module_names=lambda layer: {})
    found = Checkpoint(folder)
    take_experts_apart(found, network)
    return found


def load(found: Checkpoint, expert: int, part: str) -> Tensor:
    return found.load(f"{PREFIX}.{expert}.{part}_proj.weight")


def run_apart(module: Any, found: Checkpoint, expert: int, x: Tensor) -> Tensor:
    """Return an expert's output from what was taken apart, by the family's formula."""
    gate, up = x @ load(found, expert, "gate").T, x @ load(found, expert, "up").T
    down = load(found, expert, "down").T
    if isinstance(module, GptOssExperts):
        gate = (gate + module.gate_up_proj_bias[expert, 0::2]).clamp(max=module.limit)
        up = (up + module.gate_up_proj_bias[expert, 1::2]).clamp(-module.limit, module.limit)
        inner = (up + 1) * gate * torch.sigmoid(gate * module.alpha)
        return inner @ down + module.down_proj_bias[expert]
    return (module.act_fn(gate) * up) @ down


def run_whole(module: Any, expert: int, x: Tensor) -> Tensor:
    """Return what transformers' own module makes of tokens that all go to one expert."""
    if isinstance(module, Llama4TextExperts):
        return module(x.repeat(EXPERTS, 1)).view(EXPERTS, TOKENS, HIDDEN)[expert]
    ids = torch.full((TOKENS, 1), expert)
    return module(x, ids, torch.ones(TOKENS, 1))


@pytest.mark.parametrize("family", ["gpt_oss", "llama4", "qwen3_moe", "qwen3_vl_moe"])
def test_taken_apart_they_compute_what_the_module_does(family: str, tmp_path: Path) -> None:
    module = make_experts(family)
    tensors = {name: getattr(module, name) for name in HELD}
    found = open_apart(tmp_path, tensors, find_layout(module, family))
    x = torch.randn(TOKENS, HIDDEN)
    for expert in range(EXPERTS):
        theirs = run_whole(module, expert, x)
        assert torch.allclose(run_apart(module, found, expert, x), theirs, rtol=1e-4, atol=1e-4)
    for name in found.tensors:
        assert found.tensors[name].spec.shape == tuple(found.load(name).shape)
        assert b"".join(found.iterate(name)) == found.load(name).numpy().tobytes()


def test_gpt_oss_as_published_computes_what_transformers_does(tmp_path: Path) -> None:
    """MXFP4, decoded whole by transformers into its own module."""
    module = make_experts("gpt_oss")
    tensors = {}
    for name, rows in HELD.items():
        columns = WIDTH if name == "down_proj" else HIDDEN
        blocks = torch.randint(0, 256, (EXPERTS, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 126, (EXPERTS, rows, columns // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        getattr(module, name).data = convert_moe_packed_tensors(blocks, scales).float()
    found = open_apart(tmp_path, tensors, find_layout(module, "gpt_oss"), {"quant_method": "mxfp4"})
    x = torch.randn(TOKENS, HIDDEN)
    for expert in range(EXPERTS):
        theirs = run_whole(module, expert, x)
        assert torch.allclose(run_apart(module, found, expert, x), theirs, rtol=1e-4, atol=1e-3)
    decoder = SourceDecoder(found)
    assert len(found.tensors) == 3 * EXPERTS
    found.reads = ReadLog()
    for name in found.tensors:
        assert decoder.differs(name, found.load(name)) is None
    read = found.reads.take()
    assert read == {name: found.tensor_sha256(name) for name in found.tensors}
    assert len(set(read.values())) == 3 * EXPERTS


def test_either_axis_order_is_read_where_transformers_takes_either(tmp_path: Path) -> None:
    """Qwen3-VL-MoE is published [experts, in, out]; transformers turns that, and saves it turned or not."""
    module = make_experts("qwen3_vl_moe")
    layout = find_layout(module, "qwen3_vl_moe")
    published = {name: getattr(module, name).transpose(1, 2) for name in HELD}
    found = open_apart(tmp_path, published, layout)
    for expert in range(EXPERTS):
        assert torch.equal(load(found, expert, "gate"), module.gate_up_proj[expert, :WIDTH])
        assert torch.equal(load(found, expert, "up"), module.gate_up_proj[expert, WIDTH:])
        assert torch.equal(load(found, expert, "down"), module.down_proj[expert])
    mixed = {"gate_up_proj": published["gate_up_proj"], "down_proj": module.down_proj}
    with pytest.raises(TensorError, match=r"down_proj must be \[4, 64, 96\]"):
        open_apart(tmp_path, mixed, layout)
    with pytest.raises(TensorError, match=r"gate_up_proj must be \[4, 128, 96\] .* found F32 \[4, 96, 128\]"):
        open_apart(tmp_path, published, find_layout(make_experts("qwen3_moe"), "qwen3_moe"))


def _scales(form: str, num_weights: int, rows: int, columns: int) -> Tensor:
    shape = {
        "block": (rows // 32, columns // 32),
        "channel": (rows, 1),
        "flat channel": (rows,),
        "weight": (num_weights, 1),
        "expert": (1, 1),
        "flat expert": (),
    }[form]
    return torch.rand(EXPERTS, *shape) + 0.01


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
@pytest.mark.parametrize("form", ["block", "channel", "flat channel", "weight", "expert", "flat expert"])
def test_fused_fp8_decodes_as_transformers_does(
    form: str, suffix: str, is_turned: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tensors, whole = {}, {}
    for name, rows in HELD.items():
        columns = WIDTH if name == "down_proj" else HIDDEN
        numbers, scales = (
            torch.randn(EXPERTS, rows, columns).to(torch.float8_e4m3fn),
            _scales(form, 1 if name == "down_proj" else 2, rows, columns),
        )
        grid = scales.view(EXPERTS, -1, 1) if scales.dim() < 3 else scales
        decoded = Fp8Dequantize(None).convert({"x.weight": [numbers], "x.weight_scale_inv": [grid]})
        whole[name] = decoded["x.weight"][0]
        turn = is_turned and scales.dim() == 3
        tensors[name] = numbers.transpose(1, 2) if is_turned else numbers
        tensors[name + suffix] = scales.transpose(1, 2) if turn else scales
    tensors["down_proj_activation_scale"] = torch.ones(EXPERTS)
    quantization: dict[str, Any] = {"quant_method": "fp8"}
    quantization |= {"weight_block_size": [32, 32]} if form == "block" else {}
    found = open_apart(tmp_path, tensors, FusedLayout(is_turned=is_turned), quantization)
    decoder = SourceDecoder(found)
    for expert in range(EXPERTS):
        gate_up = whole["gate_up_proj"][expert]
        expected = {"gate": gate_up[:WIDTH], "up": gate_up[WIDTH:], "down": whole["down_proj"][expert]}
        for part, weight in expected.items():
            loaded = load(found, expert, part)
            assert torch.equal(loaded.to(weight.dtype), weight)
            assert decoder.differs(f"{PREFIX}.{expert}.{part}_proj.weight", loaded) is None
    assert len(found.tensors) == 3 * EXPERTS
    assert found.dropped == [f"{PREFIX}.down_proj.activation_scale"]


@pytest.mark.parametrize("is_interleaved", [False, True])
@pytest.mark.parametrize("is_turned", [False, True])
def test_gate_and_up_are_read_from_the_disk_once(
    is_turned: bool, is_interleaved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {
        "gate_up_proj": torch.randn(EXPERTS, 2 * WIDTH, HIDDEN),
        "down_proj": torch.randn(EXPERTS, HIDDEN, WIDTH),
    }
    stored = {name: t.transpose(1, 2) if is_turned else t for name, t in tensors.items()}
    found = open_apart(
        tmp_path, stored, FusedLayout(is_turned=is_turned, is_interleaved=is_interleaved), None
    )
    names = [f"{PREFIX}.1.{part}_proj.weight" for part in ("gate", "up", "down")]
    alone = [found.read(name) for name in names]
    filled: list[int] = []

    def fill(tensor: Tensor, *rest: Any) -> None:
        filled.append(tensor.nbytes)
        original(tensor, *rest)

    original = shard._fill
    monkeypatch.setattr(shard, "_fill", fill)
    together = found.read_together(names)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one[0], other[0])
    assert sum(filled) == 4 * 3 * WIDTH * HIDDEN  # float32: each byte of the expert once
    assert (found.place(names[0]) == found.place(names[1])) == (is_turned or is_interleaved)
    assert found.place(names[1]) != found.place(names[2])


def test_what_transformers_quantizes_is_read(tmp_path: Path) -> None:
    """By its own operation, on a module's fused tensors."""
    module = make_experts("qwen3_moe")
    settings = SimpleNamespace(weight_block_size=[32, 32], scale_fmt="float")
    quantize = Fp8Quantize(SimpleNamespace(quantization_config=settings))
    tensors = quantize.convert({name: getattr(module, name) for name in HELD})
    config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    found = open_apart(tmp_path, tensors, find_layout(module, "qwen3_moe"), config)
    gate = load(found, 2, "gate")
    assert (gate - module.gate_up_proj[2, :WIDTH]).norm() < 0.05 * gate.norm()


def _edit(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def apply(tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name])

    return apply


REFUSED: dict[str, tuple[str, Callable[[dict[str, Tensor]], None], str]] = {
    "scales across gate and up": (
        "fp8",
        _edit("gate_up_proj_scale_inv", lambda scales: scales[:, :1].repeat(1, 3, 1)),
        r"gate_up_proj_scale_inv is \[4, 3, 3\]; expected for each of 4 experts one scale",
    ),
    "scales of half the experts": (
        "fp8",
        _edit("down_proj_scale_inv", lambda scales: scales[:2]),
        r"down_proj_scale_inv is \[2, 3, 2\]",
    ),
    "no scales": (
        "fp8",
        lambda tensors: tensors.pop("down_proj_scale_inv"),
        "down_proj.weight is F8_E4M3 but",
    ),
    "another shape": ("fp8", _edit("down_proj", lambda t: t[:, :64]), r"down_proj must be \[4, 96, 64\]"),
    "no MXFP4 scales": ("mxfp4", lambda t: t.pop("down_proj_scales"), r"scales must be U8 .* found nothing"),
    "MXFP4 of other sizes": (
        "mxfp4",
        _edit("down_proj_blocks", lambda t: t[:, :, :1]),
        r"down_proj_blocks must be U8 \[4, 96, 2, 16\], .* found U8 \[4, 96, 1, 16\]",
    ),
    "plain and MXFP4": (
        "mxfp4",
        lambda tensors: tensors.update(down_proj=torch.zeros(EXPERTS, HIDDEN, WIDTH)),
        "is there twice: plain, and as",
    ),
    "MXFP4 that the config does not name": (
        "fp8",
        lambda tensors: tensors.update(_mxfp4()),
        "gate_up_proj_blocks is MXFP4, but quantization_config says quant_method fp8",
    ),
}


def _mxfp4() -> dict[str, Tensor]:
    found = {}
    for name, rows in HELD.items():
        blocks = (WIDTH if name == "down_proj" else HIDDEN) // 32
        found[f"{name}_blocks"] = torch.zeros(EXPERTS, rows, blocks, 16, dtype=torch.uint8)
        found[f"{name}_scales"] = torch.full((EXPERTS, rows, blocks), 120, dtype=torch.uint8)
    return found


def _fp8() -> dict[str, Tensor]:
    found = {}
    for name, rows in HELD.items():
        columns = WIDTH if name == "down_proj" else HIDDEN
        found[name] = torch.randn(EXPERTS, rows, columns).to(torch.float8_e4m3fn)
        found[f"{name}_scale_inv"] = torch.ones(EXPERTS, rows // 32, columns // 32)
    return found


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    method, change, message = REFUSED[case]
    tensors = _mxfp4() if method == "mxfp4" else _fp8()
    change(tensors)
    config: dict[str, Any] = {"quant_method": method}
    config |= {"weight_block_size": [32, 32]} if method == "fp8" else {}
    with pytest.raises(TensorError, match=message):
        open_apart(tmp_path, tensors, FusedLayout(), config)


def test_a_fused_tensor_of_no_layer_is_refused(tmp_path: Path) -> None:
    """Such as those of a layer past the last: its scales would stay behind."""
    tensors = {**_fp8(), "beyond": torch.zeros(2, 4, 4).to(torch.float8_e4m3fn)}
    with pytest.raises(TensorError, match=r"experts\.beyond is F8_E4M3 \[2, 4, 4\]; expected a matrix"):
        config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
        open_apart(tmp_path, tensors, FusedLayout(), config)
