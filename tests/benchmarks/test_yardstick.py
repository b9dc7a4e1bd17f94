"""The yardstick: its statistics on made-up figures, which cells run, its measures beside transformers'."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_fixtures import REFERENCE_MODEL, REPOSITORY
from transformers import DeepseekV3ForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from fidelity.algorithms import ALGORITHMS
from fidelity.measure import HeldOut
from fidelity.network import Network, Weights
from fidelity.peers import make_twin
from fidelity.stream import quantize_experts
from fidelity.texts import HeldOutDocument, heldout_documents, mark_answers
from fidelity.yardstick.cells import Cell, YardstickError, load_records, order_cells, write_json, write_record
from fidelity.yardstick.intervals import Place, Sums, mean_over, ratio_over
from fidelity.yardstick.report import Comparison
from fidelity.yardstick.runner import run_cells

BENCHMARKS = REPOSITORY / "benchmarks"
METHODS = {"moe4": True, "rtn": False}


def record(
    model: str = "a", text: str = "held out", calibration: str = "draw", kl: float = 0.5
) -> dict[str, Any]:
    """Return a record of two documents, the second three times as long."""
    tokens = [100.0, 300.0]
    names = ("agreed", "overlap", "experts", "last_experts")
    documents = {name: [0.9 * number for number in tokens] for name in names}
    documents |= {"kl": [kl * number for number in tokens], "tokens": tokens, "answer_tokens": [10.0, 20.0]}
    documents |= {"answer_before": [-1.0, -2.0], "answer_after": [-1.5, -3.0]}
    return {
        "model_sha256": model,
        "calibration": {"sequences": 1, "tokens": 9, "sha256": calibration},
        "heldout": {"documents": 2, "tokens": 400, "sha256": text},
        "seconds": {"quantize": 2.0},
        "facts": {},
        "machine": {
            "processor": "p", "num_threads": 1, "jobs": 1, "moe4": "1", "torch": "2", "transformers": "3"
        },
        "documents": documents,
    }  # fmt: skip


def test_the_most_important_cells_come_first() -> None:
    cells = order_cells(["a", "b"], METHODS, [0, 1], [4000, 400])
    assert [cell.name for cell in cells] == [
        "a.rtn",
        "b.rtn",
        "a.moe4.draw0.4000",
        "b.moe4.draw0.4000",
        "a.moe4.draw1.4000",
        "b.moe4.draw1.4000",
        "a.moe4.draw0.400",
        "b.moe4.draw0.400",
        "a.moe4.draw1.400",
        "b.moe4.draw1.400",
    ]
    assert cells[2].num_sequences == 10  # of 395 tokens each
    assert cells[0].num_sequences == 0


def test_records_that_cannot_be_paired_are_refused(tmp_path: Path) -> None:
    cell = Cell(model="m", method="moe4", draw=0, tokens=400)
    other = Cell(model="m", method="gptqmodel", draw=0, tokens=400)
    write_record(tmp_path / "here", cell, record())
    for facts, what in (
        (record(model="b"), "model"),
        (record(text="other"), "held-out text"),
        (record(calibration="other"), "calibration text"),
    ):
        write_record(tmp_path / "there", other, facts)
        with pytest.raises(YardstickError, match=f"do not share the {what}"):
            load_records([tmp_path / "here", tmp_path / "there"])
    write_record(tmp_path / "there", other, record())
    assert sorted(load_records([tmp_path / "here", tmp_path / "there"])) == sorted([cell.name, other.name])


# What a cell's process does here: it leaves a note that it ran, and its record unless the method fails.
STAND_IN = """
import json, pathlib, sys
results, name, cell, facts = sys.argv[1:]
with open(pathlib.Path(results) / "ran", "a") as file:
    file.write(name + "\\n")
if "broken" in name:
    sys.exit("no such luck")
path = pathlib.Path(results) / "cells" / f"{name}.json"
path.parent.mkdir(exist_ok=True)
path.write_text(json.dumps({"cell": json.loads(cell), **json.loads(facts)}))
"""


def stand_in(results: Path, cell: Cell) -> list[str]:
    fields = {"model": cell.model, "method": cell.method, "draw": cell.draw, "tokens": cell.tokens}
    facts = record(calibration=str(cell.draw))
    return [
        sys.executable, "-c", STAND_IN, str(results), cell.name, json.dumps(fields), json.dumps(facts)
    ]  # fmt: skip


def test_a_cell_that_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = order_cells(["m"], {"moe4": True, "broken": True}, [0, 1], [400])
    outcome = run_cells(cells, lambda cell: stand_in(tmp_path, cell), tmp_path, jobs=2, until=60)
    assert sorted(outcome.done) == ["m.moe4.draw0.400", "m.moe4.draw1.400"]
    assert sorted(outcome.failed) == ["m.broken.draw0.400", "m.broken.draw1.400"]
    assert "m.broken.draw0.400: failed after 0 s: no such luck" in capsys.readouterr().err
    merged = json.loads((tmp_path / "yardstick.json").read_text())
    assert [each["cell"]["draw"] for each in merged] == [0, 1]

    for path in (tmp_path / "cells").iterdir():  # the merged file alone is enough, as from another machine
        path.unlink()
    (tmp_path / "ran").unlink()
    run_cells(cells, lambda cell: stand_in(tmp_path, cell), tmp_path, jobs=1, until=60)
    assert (tmp_path / "ran").read_text().split() == ["m.broken.draw0.400", "m.broken.draw1.400"]


def test_no_cell_starts_after_the_time(tmp_path: Path) -> None:
    cells = order_cells(["m"], METHODS, [0], [400])
    outcome = run_cells(cells, lambda cell: stand_in(tmp_path, cell), tmp_path, jobs=2, until=0)
    assert outcome.left == ["m.rtn", "m.moe4.draw0.400"]
    assert json.loads((tmp_path / "yardstick.json").read_text()) == []


def test_an_interrupted_run_leaves_what_is_done_and_nothing_running(tmp_path: Path) -> None:
    write_record(tmp_path, Cell(model="m", method="rtn"), record() | {"calibration": None})
    script = f"""
import signal, sys
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS)!r})
from fidelity.yardstick.cells import Cell
from fidelity.yardstick.runner import run_cells
command = ["sh", "-c", "echo $$ > {tmp_path}/pid; sleep 600"]
run_cells([Cell(model="m", method="slow")], lambda cell: command, Path({str(tmp_path)!r}), jobs=1, until=60)
"""
    runner = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    pid = tmp_path / "pid"
    while not (pid.is_file() and pid.read_text().strip()):
        assert runner.poll() is None
        time.sleep(0.05)
    runner.send_signal(signal.SIGINT)
    _, errors = runner.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    (kept,) = json.loads((tmp_path / "yardstick.json").read_text())
    assert kept["cell"]["method"] == "rtn"


def grid(values: np.ndarray, noise: float = 0.0, num_documents: int = 200) -> dict[Place, Sums]:
    """Return cells [models, draws] with these values on documents of unequal length."""
    generator = np.random.default_rng(3)
    tokens = generator.uniform(50, 500, num_documents)
    return {
        (f"model{m}", d): (tokens * value * (1 + noise * generator.standard_normal(num_documents)), tokens)
        for m, row in enumerate(values)
        for d, value in enumerate(row)
    }


def test_a_mean_has_the_standard_error_of_its_draws() -> None:
    values = np.array([[1.0, 1.3, 0.8, 1.1, 0.9, 1.2, 1.05, 0.7, 1.4, 1.0]])
    found = mean_over(grid(values))
    error = values.std(ddof=1) / np.sqrt(values.size)
    assert found.value == pytest.approx(values.mean())
    assert found.num_cells == 10
    # 95 % of a normal distribution are 3.92 standard errors; drawing 10 of 10 would give 5 % less.
    assert found.interval.high - found.interval.low == pytest.approx(3.92 * error, rel=0.03)


def test_a_mean_over_one_cell_has_the_error_of_its_documents() -> None:
    cells = grid(np.array([[2.0]]), noise=0.5, num_documents=400)
    (above, below) = cells["model0", 0]
    ratio = above.sum() / below.sum()
    error = np.sqrt(((above - ratio * below) ** 2).sum()) / below.sum()
    found = mean_over(cells)
    assert found.value == pytest.approx(ratio)
    assert found.interval.high - found.interval.low == pytest.approx(3.92 * error, rel=0.06)


def test_the_spread_of_models_widens_the_interval() -> None:
    alike = mean_over(grid(np.full((3, 5), 1.0)))
    unlike = mean_over(grid(np.array([[0.5] * 5, [1.0] * 5, [1.5] * 5])))
    assert alike.interval.high - alike.interval.low < 1e-9
    assert (unlike.interval.low, unlike.interval.high) == (pytest.approx(0.5), pytest.approx(1.5))


def test_a_paired_ratio_is_free_of_what_pairs_share() -> None:
    values = np.array([[1.0, 3.0, 0.5], [2.0, 0.2, 5.0]])
    above, below = grid(0.7 * values, noise=0.3), grid(values, noise=0.3)
    found = ratio_over(above, below)
    assert found.value == pytest.approx(0.7)
    assert (found.interval.low, found.interval.high) == (pytest.approx(0.7), pytest.approx(0.7))
    assert found.num_cells == 6


def test_pairs_that_one_method_lacks_are_left_out() -> None:
    above, below = grid(np.array([[2.0, 2.0], [9.0, 2.0]])), grid(np.array([[1.0, 1.0], [1.0, 1.0]]))
    del below["model1", 0]
    found = ratio_over(above, below)
    assert (found.value, found.num_cells) == (pytest.approx(2.0), 3)
    with pytest.raises(ValueError, match="no cells"):
        ratio_over({("model1", 0): above["model1", 0]}, below)


def test_the_page_has_means_and_paired_ratios(tmp_path: Path) -> None:
    for model in ("m", "n"):
        for draw in (0, 1):
            for method, kl in (("moe4", 0.001), ("other", 0.002)):
                cell = Cell(model=model, method=method, draw=draw, tokens=400)
                write_record(tmp_path, cell, record(kl=kl * (1 + draw), calibration=str(draw)))
        write_record(tmp_path, Cell(model=model, method="rtn"), record(kl=0.004) | {"calibration": None})
    titles = {"moe4": "moe4", "other": "Other", "rtn": "round to nearest"}
    comparison = Comparison(load_records([tmp_path]).values(), titles, ("moe4",))
    page = comparison.markdown(["python benchmarks/bench_yardstick.py run --results DIR"])
    assert "| moe4 | 4 | 1.500 [1.000, 2.000] | 90.00 [90.00, 90.00] |" in page
    assert "| moe4 / Other | 4 | 0.500 [0.500, 0.500] | 1.000 [1.000, 1.000] |" in page
    # once a model for every draw: the geometric mean of 1/4 and 2/4
    assert comparison.as_json()["400"]["ratios"]["moe4/rtn"]["kl"]["value"] == pytest.approx(0.125**0.5)
    assert "| -50.000 [-50.000, -50.000] |" in page  # (-4.5 + 3) / 30 nats
    with pytest.raises(YardstickError, match="no cell is done"):
        Comparison([], titles, ("moe4",))


def test_answers_are_the_assistants_words() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(REFERENCE_MODEL)
    ids = tokenizer.encode(
        "<|im_user|>user<|im_middle|>Hi<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>Hello.<|im_end|><|im_user|>user<|im_middle|>Bye<|im_end|>"
    )
    marked = mark_answers(ids, tokenizer)
    answer = [token for token, mark in zip(ids, marked, strict=True) if mark]
    assert tokenizer.decode(answer) == "Hello.<|im_end|>"
    problem, *_ = heldout_documents(REFERENCE_MODEL, 4, 0, 0)
    answer = [token for token, mark in zip(problem.ids, problem.is_answer, strict=True) if mark]
    text = tokenizer.decode(problem.ids)
    parts = [part.partition("\nAnswer:")[2] for part in text.split("\n\n")]
    assert tokenizer.decode(answer) == "".join(parts) != ""


def plain_answer(model: DeepseekV3ForCausalLM, ids: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return what transformers itself answers on one document, and the experts that its routers choose."""
    chosen: list[torch.Tensor] = []

    def note(module: torch.nn.Module, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        chosen.append(outputs[-1].sort(dim=-1).values)

    hooks = [
        layer.mlp.gate.register_forward_hook(note)
        for layer in model.model.layers
        if hasattr(layer.mlp, "gate")
    ]
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return logits.double().log_softmax(dim=-1), chosen


def put_experts(model: DeepseekV3ForCausalLM, weights: Weights) -> None:
    with torch.inference_mode():
        for number, layer in enumerate(model.model.layers):
            if hasattr(layer.mlp, "experts"):
                for expert in range(model.config.n_routed_experts):
                    gate, up, down = (
                        weights[f"model.layers.{number}.mlp.experts.{expert}.{part}_proj.weight"]
                        for part in ("gate", "up", "down")
                    )
                    layer.mlp.experts.gate_up_proj[expert] = torch.cat([gate, up])
                    layer.mlp.experts.down_proj[expert] = down


def test_measures_are_those_of_transformers(tmp_path: Path) -> None:
    documents = heldout_documents(REFERENCE_MODEL, 4, 1, 1)
    documents = [HeldOutDocument(each.ids[:150], each.is_answer[:150]) for each in documents]
    network = Network(REFERENCE_MODEL)
    heldout = HeldOut(network, documents)
    same = heldout.measure(network.original)
    assert float(same.kl.abs().max()) == 0
    for values in (same.agreed, same.overlap, same.experts, same.last_experts):
        assert torch.equal(values, same.tokens)
    assert torch.equal(same.answer_before, same.answer_after)

    weights = quantize_experts(network, ALGORITHMS["rtn"], [])
    found = heldout.measure(weights)
    model = DeepseekV3ForCausalLM.from_pretrained(make_twin(REFERENCE_MODEL, tmp_path), dtype=torch.float32)
    before = [plain_answer(model, each.ids) for each in documents]
    put_experts(model, weights)
    after = [plain_answer(model, each.ids) for each in documents]
    for n, document in enumerate(documents):
        (p, experts), (q, experts_after) = before[n], after[n]
        # Float32 sums in another order: some 1e-7 a logit, so 1e-5 in a document's sums of some 150 tokens.
        assert float(found.kl[n]) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)
        assert float(found.agreed[n]) == float((p.argmax(1) == q.argmax(1)).sum())
        five = (
            [set(row.tolist()) for row in p.topk(5).indices],
            [set(row.tolist()) for row in q.topk(5).indices],
        )
        assert float(found.overlap[n]) == pytest.approx(
            sum(len(a & b) / 5 for a, b in zip(*five, strict=True)), abs=0.21
        )
        unchanged = [(a == b).all(dim=-1).float() for a, b in zip(experts, experts_after, strict=True)]
        assert float(found.experts[n]) == pytest.approx(float(torch.stack(unchanged).mean(0).sum()), abs=0.01)
        assert float(found.last_experts[n]) == float(unchanged[-1].sum())
        spots = [i for i in range(1, len(document.ids)) if document.is_answer[i]]
        assert float(found.answer_tokens[n]) == len(spots) > 0
        for sums, table in ((found.answer_before, p), (found.answer_after, q)):
            expected = sum(float(table[i - 1, document.ids[i]]) for i in spots)
            assert float(sums[n]) == pytest.approx(expected, abs=1e-3)


def test_a_wrong_option_is_one_line(tmp_path: Path) -> None:
    write_json(tmp_path / "yardstick.json", [])
    for words, expected in (
        (["cell", str(REFERENCE_MODEL), "--method", "moe4"], "moe4 needs --draw and --tokens"),
        (["report", str(tmp_path)], "no cell is done"),
    ):
        results = ["--results", str(tmp_path)] if words[0] == "cell" else []
        command = [sys.executable, str(BENCHMARKS / "bench_yardstick.py"), *words, *results]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [f"bench_yardstick: error: {expected}"]
