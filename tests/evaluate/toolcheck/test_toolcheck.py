"""`moe4 toolcheck` against a server whose faults are known: each is found, and only by its own measure."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from scripted_tool_server import MODEL, ToolServer, hard_cases, running, write_requests
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import EvaluationError, ServeError
from moe4.evaluate.built_in import HARD_CASES
from moe4.evaluate.result_files import Measure, ToolcheckFile
from moe4.evaluate.toolcheck import ToolcheckOptions, describe, failed_checks, run_toolcheck
from moe4.evaluate.toolcheck import client as client_module
from moe4.evaluate.toolcheck.checks import check
from moe4.evaluate.toolcheck.client import Reply
from moe4.evaluate.toolcheck.requests import ToolRequest, read_requests, request_files


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ToolServer]:
    monkeypatch.setattr(client_module, "FIRST_WAIT_SECONDS", 0.01)
    with running() as state:
        yield state


def checked(server: ToolServer, **options: Any) -> ToolcheckFile:
    return run_toolcheck(
        ToolcheckOptions(**{"base_url": server.url, "requests": (HARD_CASES,), **options}), lambda *_: None
    )


def values(result: ToolcheckFile) -> dict[str, float]:
    return {name: measure.value for name, measure in result.release.measures.items() if measure}


def measure_of(result: ToolcheckFile, name: str) -> Measure:
    measure = result.release.measures[name]
    assert measure is not None
    return measure


def test_a_perfect_server_passes_everything(server: ToolServer) -> None:
    result = checked(server)
    assert set(values(result).values()) == {1.0}
    assert len(values(result)) == 12
    assert failed_checks(result) == []
    assert result.release.faults_found == []
    low, high = measure_of(result, "schema_accuracy").interval
    assert 0.8 < low < high == 1.0
    assert len(server.asked) == 2 * len(hard_cases())
    assert {body["temperature"] for body in server.asked} == {0.0}
    assert not any("expected" in body or "name" in body for body in server.asked)


@pytest.mark.parametrize(
    ("fault", "hurt"),
    [
        ("broken json", {"schema_accuracy", "calls_exact"}),
        ("other types", {"schema_accuracy", "calls_exact"}),
        ("nothing for empty", {"stream_equal", "empty_arguments"}),
        ("cut calls are calls", {"schema_accuracy", "truncated_safe"}),
        ("cut calls could run", {"truncated_safe"}),
        ("cut calls have arguments", set()),
        ("own ids", {"id_form", "id_counts"}),
        ("ids from zero", {"id_counts"}),
        ("never calls", {"tool_call_f1", "calls_exact"}),
        ("leaks", {"no_markers"}),
        ("says stop", {"tool_call_f1", "finish_reason_consistent", "truncated_safe"}),
        ("streams otherwise", {"stream_equal"}),
        ("no usage when streaming", {"usage_present"}),
        ("usage is text", {"usage_present"}),
        ("refuses nested", {"answered"}),
    ],
)
def test_each_fault_hurts_its_own_measures(server: ToolServer, fault: str, hurt: set[str]) -> None:
    server.fault = fault
    result = checked(server)
    assert {name for name, value in values(result).items() if value < 1} == hurt
    assert set(failed_checks(result)) <= hurt


@pytest.mark.parametrize("fault", ["finish is a number", "half a character"])
def test_an_answer_that_no_file_can_keep_is_none(server: ToolServer, fault: str, tmp_path: Path) -> None:
    server.fault = fault
    result = checked(server, output=tmp_path / "answers.jsonl")
    assert {name for name, value in values(result).items() if value < 1} >= {"answered"}
    assert "the answer is not a chat completion" in (tmp_path / "answers.jsonl").read_text()


def test_the_requests_that_went_wrong_are_named(server: ToolServer) -> None:
    """Ten at most; the result has more."""
    assert "\nrequest " not in describe(checked(server))
    server.fault = "broken json"
    result = checked(server)
    found = result.release.faults_found
    shown = [line for line in describe(result).splitlines() if line.startswith("request ")]
    assert len(found) > len(shown) == 10
    assert shown[0] == f"request {found[0].request + 1}, {found[0].name}: {'; '.join(found[0].notes)}"
    assert describe(result).endswith("\nmore requests had faults; the result as JSON has the first 50")


def test_f1_is_the_vendor_verifiers(server: ToolServer) -> None:
    """Counts by hand: a server that never calls has only misses; F1 = 2 TP / (2 TP + FP + FN)."""
    server.fault = "never calls"
    measure = measure_of(checked(server), "tool_call_f1")
    wanted = sum(bool(c["expected"].get("calls") or c["expected"].get("called")) for c in hard_cases())
    assert (measure.true_positives, measure.false_negatives) == (0, wanted)
    undecided = sum(bool(c["expected"].get("truncated")) for c in hard_cases())
    assert measure.true_negatives == len(hard_cases()) - wanted - undecided
    assert measure.value == 0.0


def test_requests_are_tried_again_a_bounded_number_of_times(server: ToolServer) -> None:
    server.fault = "busy twice"
    requests = read_requests(HARD_CASES, 1)
    result = checked(server, limit=1, max_retries=3, stream=False)
    assert values(result)["answered"] == 1.0
    assert len(server.asked) == 3
    server.fault, server.asked = "always busy", []
    with pytest.raises(ServeError, match=r"answered none of 1 requests: 503: busy"):
        checked(server, limit=1, max_retries=2, stream=False)
    assert len(server.asked) == 3
    assert requests[0].name == "one call"


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("7", 7.0, 7.0),
        ("0.25", 0.25, 0.25),
        ("3600", 20.0, 20.0),  # no longer than that, whatever the server says
        (None, 0.25, 0.75),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.25, 0.75),
        ("nan", 0.25, 0.75),
        ("-5", 0.25, 0.75),
    ],
)
def test_a_busy_server_says_when_to_come_back(
    asked: str | None, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(429, headers={} if asked is None else {"Retry-After": asked})

    async def ask_twice() -> client_module.Reply:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            endpoint = client_module.Endpoint(base_url="http://h/v1", model="m")
            return await client_module.ask(client, endpoint, {}, stream=False, max_retries=2)

    monkeypatch.setattr(client_module.asyncio, "sleep", sleep)
    reply = asyncio.run(ask_twice())
    assert reply.error is not None
    assert reply.attempts == 3
    first, second = waits
    assert least <= first <= most
    twice = 1 if least == most else 2  # of its own accord it waits twice as long each time
    assert twice * least <= second <= twice * most


def test_a_run_goes_on_where_it_was_cut_off(server: ToolServer, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    first = checked(server, output=output, limit=10)
    assert len(server.asked) == 20
    lines = output.read_text(encoding="utf-8").splitlines()
    output.write_text("\n".join(lines[:15]) + "\n" + lines[15][:40], encoding="utf-8")  # as kill -9 leaves it
    server.asked = []
    assert checked(server, output=output, limit=10) == first
    assert len(server.asked) == 5
    server.asked = []
    assert checked(server, output=output, limit=10) == first
    assert server.asked == []


def test_two_endpoints(server: ToolServer) -> None:
    with running() as baseline:
        server.fault = "never calls"
        result = checked(server, against=baseline.url)
    assert result.baseline is not None and result.agreement is not None
    wanted, agreement = result.baseline.num_calls, result.agreement
    assert agreement.decision_agreement is not None
    assert agreement.decision_agreement.successes == len(hard_cases()) - wanted
    assert agreement.exact_gained == 0
    assert agreement.exact_lost == sum(bool(case["expected"].get("calls")) for case in hard_cases())
    assert agreement.exact_mcnemar_p < 0.01
    assert "baseline and release agree on whether to call in" in describe(result)


def test_without_expectations_the_baseline_is_the_reference(server: ToolServer, tmp_path: Path) -> None:
    bare = [{key: case[key] for key in ("messages", "tools")} for case in hard_cases()]
    path = write_requests(tmp_path / "bare.jsonl", bare)
    assert "tool_call_f1" not in values(checked(server, requests=(path,)))
    with running() as baseline:
        assert values(checked(server, requests=(path,), against=baseline.url))["tool_call_f1"] == 1.0


def test_the_vendor_verifiers_files(server: ToolServer, tmp_path: Path) -> None:
    """Requests with `_input` messages and sampling of their own; its results as the reference."""
    case = hard_cases()[0]
    body = {
        "messages": [{"role": "_input", "content": "Be brief."}, *case["messages"]],
        "tools": case["tools"],
        "temperature": 0.6,
        "max_tokens": 64000,
        "stream": True,
    }
    system = [{"role": "system", "content": "Be brief."}, *case["messages"]]
    server.answers[json.dumps(system)] = []
    path = write_requests(tmp_path / "samples.jsonl", [body])
    results = write_requests(
        tmp_path / "results.jsonl",
        [
            {
                "data_index": 1,
                "request": {**body, "messages": system, "model": "k2"},
                "response": {"choices": []},
                "status": "success",
                "finish_reason": "tool_calls",
                "tool_calls_valid": True,
                "hash": "0",
            }
        ],
    )
    result = checked(server, requests=(path,), reference=results, keep_sampling=True)
    assert server.asked[0]["messages"][0]["role"] == "system"
    assert server.asked[0]["temperature"] == 0.6
    assert measure_of(result, "tool_call_f1").false_negatives == 1


def test_our_own_output_is_a_reference(server: ToolServer, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    checked(server, output=output)
    bare = [{key: case[key] for key in ("messages", "tools")} for case in hard_cases()]
    path = write_requests(tmp_path / "bare.jsonl", bare)
    measure = measure_of(checked(server, requests=(path,), reference=output), "tool_call_f1")
    assert (measure.value, measure.num) == (1.0, len(hard_cases()))


def test_the_hard_cases_are_sound() -> None:
    """Every expected call fits its tool's schema; names differ; every kind the docs name is there."""
    cases = hard_cases()
    assert len({case["name"] for case in cases}) == len(cases) == 46
    for case in cases:
        tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in case["tools"]}
        for schema in tools.values():
            jsonschema.Draft202012Validator.check_schema(schema)
        for call in case["expected"].get("calls") or []:
            jsonschema.validate(call["arguments"], tools[call["name"]])
    assert request_files(()) == [HARD_CASES]
    turns, cases = request_files((Path("reference"),))
    assert cases == HARD_CASES
    assert len(read_requests(turns)) == 300
    own = Path("own.jsonl")
    assert request_files((own, Path("reference"))) == [own, turns]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "requests.jsonl:1: not JSON"),
        ("[1]", "expected an object"),
        ('{"messages": []}', "messages must have at least 1 entry"),
        ('{"messages": [3]}', r"messages\[0\] must be an object, found 3"),
        ('{"messages": [{}]}', r"messages\[0\].role is missing"),
        ('{"messages": [{"role": "user", "tool_calls": 3}]}', r"tool_calls must be a list, found 3"),
        ('{"messages": [{"role": "user"}], "tools": 5}', "tools must be a list, found 5"),
        ('{"messages": [{"role": "user"}], "tools": [{"name": "f"}]}', r"tools\[0\].function is missing"),
        (
            '{"messages": [{"role": "user"}], "tools": [{"function": {"name": "f", "parameters": []}}]}',
            r"tools\[0\].function.parameters must be an object",
        ),
        ('{"messages": [{"role": "user"}], "expected": {}}', "expected: must be"),
        ('{"messages": [{"role": "user"}], "expected": {"calls": 3}}', "expected.calls must be a list"),
        (
            '{"messages": [{"role": "user"}], "expected": {"calls": [{"name": "f"}]}}',
            r"expected.calls\[0\].arguments is missing",
        ),
        ("", "it holds no requests"),
    ],
)
def test_bad_requests_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(line)
    with pytest.raises(EvaluationError, match=message):
        read_requests(path)


def test_a_kept_answer_of_another_form_is_named(server: ToolServer, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    checked(server, output=output, limit=1)
    line = json.loads(output.read_text().splitlines()[0])
    output.write_text(json.dumps({**line, "reply": {**line["reply"], "calls": 3}}) + "\n")
    with pytest.raises(
        EvaluationError, match=r"answers.jsonl, line 1, is damaged: reply.calls must be a list, found 3"
    ):
        checked(server, output=output, limit=1)


def test_the_command(server: ToolServer, tmp_path: Path) -> None:
    path = str(HARD_CASES)
    passed = CliRunner().invoke(app, ["toolcheck", server.url, "--requests", path, "--limit", "3"])
    assert passed.exit_code == 0
    assert "decision to call, F1 against the reference" in passed.stdout
    server.fault = "leaks"
    missed = CliRunner().invoke(app, ["toolcheck", server.url, "--requests", path, "--json"])
    assert missed.exit_code == 1
    assert json.loads(missed.stdout)["release"]["measures"]["no_markers"]["ok"] is False
    lenient = ["--threshold", "no_markers=0.1", "--no-stream"]
    assert CliRunner().invoke(app, ["toolcheck", server.url, "--requests", path, *lenient]).exit_code == 0
    with pytest.raises(EvaluationError, match="expected NAME=SHARE"):
        checked(server, thresholds=("f1=0.9",))
    with pytest.raises(ServeError, match=f"has no model other; it has {MODEL}"):
        checked(server, model="other")


WEATHER = {
    "messages": [{"role": "user", "content": "x"}],
    "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}],
    "max_tokens": 8,
}


def reply(finish: str, *calls: tuple[str, Any]) -> Reply:
    usage = {"prompt_tokens": 1, "completion_tokens": 8, "total_tokens": 9}
    made = [{"id": f"functions.{name}:0", "name": name, "arguments": text} for name, text in calls]
    return Reply(finish_reason=finish, calls=made, usage=usage)


@pytest.mark.parametrize(
    ("answer", "consistent", "safe"),
    [
        (reply("length", ("get_weather", '{"city')), True, True),
        (reply("length"), True, True),
        (reply("length", ("get_weather", '{"city": "Rome"}'), ("get_weather", '{"ci')), True, True),
        (reply("length", ("functions.get_weather:", "{}")), True, False),
        (reply("length", ("get_wea", "")), True, False),
        (reply("tool_calls", ("get_weather", '{"city')), True, None),
        (reply("stop", ("get_weather", '{"city": "Rome"}')), False, None),
    ],
)
def test_a_cut_that_no_one_announced(answer: Reply, consistent: bool, safe: bool | None) -> None:
    request = ToolRequest(where="1", name="a", body=WEATHER, expected_call=None, expected_calls=None)
    found = check(request, answer, answer)
    assert (found.finish_consistent, found.truncated_safe) == (consistent, safe)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("{}", True),
        (" {} ", True),
        ("", False),
        (None, False),
        ("null", False),
        ('{"time": "10:0"}', None),
        ("{", None),
    ],
)
def test_arguments_that_are_none(arguments: Any, expected: bool | None) -> None:
    request = ToolRequest(where="1", name="a", body=WEATHER, expected_call=None, expected_calls=None)
    answer = reply("tool_calls", ("get_weather", arguments))
    assert check(request, answer, answer).empty_arguments is expected
