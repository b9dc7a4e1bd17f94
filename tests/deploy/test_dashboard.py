"""The dashboard's and the alerts' metric names, held to those the installed vLLM defines."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from deploy.deploy_cases import K2_TINY
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.deploy.dashboard import HTTP_REQUESTS, METRICS, alert_rules, alerts, dashboard

HISTOGRAM_SUFFIXES = ("_bucket", "_sum", "_count")


def defined_by_vllm() -> dict[str, str]:
    """Return vLLM's metrics as Prometheus sees them, and their kinds, read from its source."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    found = {}
    for file in (Path(spec.origin).parent / "v1" / "metrics").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            names = [word.value for word in node.keywords if word.arg == "name"]
            kind = re.search(r"gauge|counter|histogram", ast.unparse(node.func).lower())
            if (
                kind
                and names
                and isinstance(names[0], ast.Constant)
                and str(names[0].value).startswith("vllm:")
            ):
                name = str(names[0].value)
                if kind[0] == "counter" and not name.endswith("_total"):
                    name += "_total"  # prometheus_client adds it
                found[name] = kind[0]
    return found


def expressions() -> list[str]:
    board = dashboard("k2-tiny")
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return found + [alert.expression for alert in alerts("k2-tiny")]


def test_metrics_are_those_of_the_installed_vllm() -> None:
    defined = defined_by_vllm()
    assert len(defined) > 20
    assert {name: defined.get(name) for name in METRICS} == METRICS


def test_expressions_use_known_metrics_as_their_kinds_allow() -> None:
    for expression in expressions():
        used = re.findall(r"\b(vllm:\w+|http_\w+)", expression)
        assert used
        for name in used:
            if name == HTTP_REQUESTS:
                continue
            base = re.sub(f"({'|'.join(HISTOGRAM_SUFFIXES)})$", "", name) if name not in METRICS else name
            assert base in METRICS, expression
            assert (METRICS[base] == "histogram") == (base != name), expression
            if METRICS[base] != "gauge":
                assert re.search(rf"rate\({re.escape(name)}", expression), expression
        assert expression.count("(") == expression.count(")")
        assert expression.count("{") == expression.count("}")


def test_the_dashboard_covers_what_operators_ask() -> None:
    board = dashboard("k2-tiny")
    text = json.dumps(board)
    for metric in ("time_to_first_token", "inter_token_latency", "num_requests_waiting", "kv_cache_usage"):
        assert f"vllm:{metric}" in text
    assert HTTP_REQUESTS in text
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) == 8
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)


def test_alerts_are_a_prometheus_rule() -> None:
    document = yaml.safe_load(alert_rules("k2-tiny"))
    assert document["kind"] == "PrometheusRule"
    rules = document["spec"]["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules][:2] == ["K2TinyGone", "K2TinySlowFirstToken"]
    assert all({"alert", "expr", "for", "labels", "annotations"} == rule.keys() for rule in rules)


def test_the_command_writes_both(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["deploy", "dashboard", str(K2_TINY), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.exception
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["k2-tiny-alerts.yaml", "k2-tiny-dashboard.json"]
    assert json.loads((tmp_path / "out" / names[1]).read_text())["title"] == "k2-tiny on vLLM"
