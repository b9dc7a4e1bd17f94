"""What a report says of a run, from records whose figures are known."""

import json
from typing import Any

import pytest
import torch

from moe4.checkpoint.report_file import ExpertRecord, Fallback, LayerRecord, MatrixRecord
from moe4.gptq.solver import QuantizedMatrix
from moe4.machine.memory import total_memory_bytes
from moe4.quantize.reporting.layer_record import (
    describe_layer,
    matrix_record,
    peak_memory_bytes,
    summarize,
)


def matrix(error: float, rtn_error: float, **more: Any) -> MatrixRecord:
    return MatrixRecord(method="gptq", error=error, rtn_error=rtn_error, **more)


def expert(num_tokens: int | None, *errors: float, **more: Any) -> ExpertRecord:
    parts = zip(("gate", "up", "down"), errors, strict=True)
    matrices: Any = {part: matrix(error, 2 * error, **more) for part, error in parts}
    return ExpertRecord(num_tokens=num_tokens, **matrices)


RECORDS = [
    LayerRecord(
        layer=1,
        shard="model-00002-of-00003.safetensors",
        experts=[expert(40, 0.01, 0.02, 0.03), expert(0, 0.30, 0.10, 0.20, fallback="no tokens")],
        linears={"self_attn.o_proj": matrix(0.05, 0.09)},
    ),
    LayerRecord(
        layer=2,
        shard="model-00003-of-00003.safetensors",
        experts=[expert(7, 0.04, 0.15, 0.06), expert(9, 0.01, 0.01, 0.01)],
        linears={},
    ),
]


def test_a_summary_counts_every_matrix_once() -> None:
    summary = summarize(RECORDS)
    assert summary.num_matrices == 13
    total = 0.01 + 0.02 + 0.03 + 0.30 + 0.10 + 0.20 + 0.04 + 0.15 + 0.06 + 0.01 + 0.01 + 0.01
    assert summary.mean_error == pytest.approx((total + 0.05) / 13, rel=1e-5)
    assert summary.mean_rtn_error == pytest.approx((2 * total + 0.09) / 13, rel=1e-5)
    assert summary.expert_tokens is not None
    assert summary.expert_tokens.as_dict() == {"least": 0, "median": 7, "most": 40, "num_unreached": 1}


def test_a_summary_names_the_worst_and_the_fallbacks() -> None:
    summary = summarize(RECORDS)
    assert [(item.matrix, item.error, item.rtn_error) for item in summary.worst] == [
        ("layer 1 expert 1 gate_proj", 0.30, 0.60),
        ("layer 1 expert 1 down_proj", 0.20, 0.40),
        ("layer 2 expert 0 up_proj", 0.15, 0.30),
        ("layer 1 expert 1 up_proj", 0.10, 0.20),
        ("layer 2 expert 0 down_proj", 0.06, 0.12),
    ]
    assert summary.fallbacks == [
        Fallback(matrix=f"layer 1 expert 1 {part}_proj", why="no tokens") for part in ("gate", "up", "down")
    ]


def test_an_expert_without_a_gate_has_two_matrices() -> None:
    parts: Any = {"up": matrix(0.1, 0.2), "down": matrix(0.3, 0.4)}
    record = LayerRecord(layer=1, experts=[ExpertRecord(num_tokens=3, **parts)], linears={})
    assert [name for name, _ in record.matrices()] == [
        "layer 1 expert 0 up_proj",
        "layer 1 expert 0 down_proj",
    ]
    assert "gate" not in record.as_dict()["experts"][0]
    assert summarize([record]).num_matrices == 2


def test_without_calibration_there_are_no_tokens_to_count() -> None:
    record = LayerRecord(layer=1, shard="s", experts=[expert(None, 0.1, 0.1, 0.1)], linears={})
    assert "expert_tokens" not in summarize([record]).as_dict()


def test_a_layer_in_one_line() -> None:
    assert describe_layer(RECORDS[0]) == (
        "2 experts, mean error 0.10143 (round to nearest 0.20143), 3 fallbacks"
    )
    assert describe_layer(RECORDS[1]) == "2 experts, mean error 0.04667 (round to nearest 0.09333)"
    assert describe_layer(LayerRecord(layer=0, shard="s", experts=[], linears={})) == "nothing to quantize"
    assert LayerRecord(**json.loads(json.dumps(RECORDS[0].as_dict()))) == RECORDS[0]


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {}),
        ({"fallback": "no tokens", "method": "rtn"}, {"fallback": "no tokens", "method": "rtn"}),
        ({"raised_damping": 0.0}, {"raised_damping": 0.0}),
    ],
)
def test_a_record_keeps_six_digits_and_what_is_out_of_the_ordinary(
    changes: dict[str, Any], more: dict[str, Any]
) -> None:
    found = QuantizedMatrix(
        **{
            "codes": torch.zeros(1, 1, dtype=torch.int8),
            "scales": torch.ones(1, 1),
            "method": "gptq",
            "error": 0.0123456789,
            "rtn_error": 1234567.8,
            **changes,
        }
    )
    assert matrix_record(found).as_dict() == {
        "method": "gptq",
        "error": 0.0123457,
        "rtn_error": 1234570.0,
        **more,
    }


def test_the_peak_of_memory_is_in_bytes() -> None:
    block = bytearray(b"x" * (64 << 20))
    assert len(block) < peak_memory_bytes() <= total_memory_bytes()
