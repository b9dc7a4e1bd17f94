"""A Grafana dashboard and Prometheus alert rules for a served release.

`METRICS` are the names vLLM 0.32 exposes, as Prometheus sees them (counters end in `_total`); a test holds
them to the installed vLLM.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moe4.deploy.manifests.documents import Noted, render

METRICS = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:num_preemptions_total": "counter",
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:request_success_total": "counter",
    "vllm:prefix_cache_queries_total": "counter",
    "vllm:prefix_cache_hits_total": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
}
# Of the HTTP server in front, by prometheus-fastapi-instrumentator.
HTTP_REQUESTS = "http_requests_total"
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One graph: PromQL expressions by legend."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    description: str


def panels(model: str) -> list[Panel]:
    """Return the graphs for the model served under this name."""
    chosen = f'{{model_name="{model}"}}'
    return [*_latency_panels(chosen), *_load_panels(chosen), *_outcome_panels(chosen)]


def _latency_panels(chosen: str) -> list[Panel]:
    """Return what a reader waits for; `chosen` selects the model in PromQL."""
    return [
        Panel(
            title="Time to first token",
            unit="s",
            queries=tuple(_quantiles("vllm:time_to_first_token_seconds", chosen)),
            description="From the request's arrival to its first token: queue, then prefill.",
        ),
        Panel(
            title="Inter-token latency",
            unit="s",
            queries=tuple(_quantiles("vllm:inter_token_latency_seconds", chosen)),
            description="Between two tokens of one answer, as a reader sees it.",
        ),
    ]


def _load_panels(chosen: str) -> list[Panel]:
    """Return what the server has to do, and what of it waits."""
    hits = f"sum(rate(vllm:prefix_cache_hits_total{chosen}[$__rate_interval]))"
    queries = f"sum(rate(vllm:prefix_cache_queries_total{chosen}[$__rate_interval]))"
    return [
        Panel(
            title="Requests running and waiting",
            unit="short",
            queries=(
                ("running", f"sum(vllm:num_requests_running{chosen})"),
                ("waiting", f"sum(vllm:num_requests_waiting{chosen})"),
            ),
            description="What waits has no room in the batch or in the cache.",
        ),
        Panel(
            title="Time in the queue",
            unit="s",
            queries=tuple(_quantiles("vllm:request_queue_time_seconds", chosen)),
            description="Before a request is first scheduled.",
        ),
        Panel(
            title="Cache in use",
            unit="percentunit",
            queries=(
                ("in use", f"max(vllm:kv_cache_usage_perc{chosen})"),
                ("prefix hits", f"{hits} / {queries}"),
            ),
            description="At 1, running requests are preempted and computed again.",
        ),
        Panel(
            title="Tokens a second",
            unit="short",
            queries=(
                ("prompt", f"sum(rate(vllm:prompt_tokens_total{chosen}[$__rate_interval]))"),
                ("generated", f"sum(rate(vllm:generation_tokens_total{chosen}[$__rate_interval]))"),
            ),
            description="Of all requests together.",
        ),
    ]


def _outcome_panels(chosen: str) -> list[Panel]:
    """Return how requests end."""
    reasons = f"sum by (finished_reason) (rate(vllm:request_success_total{chosen}[$__rate_interval]))"
    failed = f'sum by (status, handler) (rate({HTTP_REQUESTS}{{status=~"4..|5.."}}[$__rate_interval]))'
    return [
        Panel(
            title="Requests finished, by reason",
            unit="reqps",
            queries=(("{{finished_reason}}", reasons),),
            description="`length`: an answer cut off; `abort`: a client that left; `error`: a failure.",
        ),
        Panel(
            title="Errors and preemptions",
            unit="reqps",
            queries=(
                ("{{status}} {{handler}}", failed),
                ("preempted", f"sum(rate(vllm:num_preemptions_total{chosen}[$__rate_interval]))"),
            ),
            description="HTTP answers of 4xx and 5xx; preemptions mean the cache is too small for the load.",
        ),
    ]


def dashboard(model: str) -> dict[str, Any]:
    """Return a Grafana dashboard as JSON types; Grafana asks for the data source when it is imported."""
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    graphs = []
    for number, panel in enumerate(panels(model)):
        targets = [
            {
                "datasource": source,
                "expr": expression,
                "legendFormat": legend,
                "refId": chr(ord("A") + position),
            }
            for position, (legend, expression) in enumerate(panel.queries)
        ]
        graphs.append(
            {
                "id": number + 1,
                "type": "timeseries",
                "title": panel.title,
                "description": panel.description,
                "datasource": source,
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
                "targets": targets,
            }
        )
    return {
        "__inputs": [
            {
                "name": "DS_PROMETHEUS",
                "label": "Prometheus",
                "type": "datasource",
                "pluginId": "prometheus",
                "pluginName": "Prometheus",
            }
        ],
        "title": f"{model} on vLLM",
        "uid": f"moe4-{model}"[:40],
        "tags": ["moe4", "vllm"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": []},
        "panels": graphs,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """A Prometheus rule: `expression` holds for `minutes`."""

    name: str
    expression: str
    minutes: int
    severity: str
    summary: str
    why: str


def alerts(model: str) -> list[Alert]:
    """Return the alerts for the model served under this name."""
    chosen = f'{{model_name="{model}"}}'
    errors = f'sum(rate(vllm:request_success_total{{model_name="{model}",finished_reason="error"}}[10m]))'
    finished = f"sum(rate(vllm:request_success_total{chosen}[10m]))"
    served = f'sum(rate({HTTP_REQUESTS}{{status=~"5.."}}[10m]))'
    first = f"sum by (le) (rate(vllm:time_to_first_token_seconds_bucket{chosen}[10m]))"
    between = f"sum by (le) (rate(vllm:inter_token_latency_seconds_bucket{chosen}[10m]))"
    return [
        Alert(
            name="Gone",
            expression=f"absent(vllm:num_requests_running{chosen})",
            minutes=10,
            severity="critical",
            summary="no server reports this model",
            why="longer than one missed scrape",
        ),
        Alert(
            name="SlowFirstToken",
            expression=f"histogram_quantile(0.95, {first}) > 10",
            minutes=10,
            severity="warning",
            summary="one request in twenty waits more than 10 s for its first token",
            why="a reader has gone elsewhere by then",
        ),
        Alert(
            name="SlowTokens",
            expression=f"histogram_quantile(0.95, {between}) > 0.2",
            minutes=10,
            severity="warning",
            summary="one token in twenty takes more than 200 ms",
            why="slower than people read",
        ),
        Alert(
            name="Queue",
            expression=f"sum(vllm:num_requests_waiting{chosen}) > 10",
            minutes=10,
            severity="warning",
            summary="more than 10 requests have been waiting for ten minutes",
            why="the load is above what the batch and the cache take",
        ),
        Alert(
            name="CacheFull",
            expression=f"max(vllm:kv_cache_usage_perc{chosen}) > 0.95",
            minutes=10,
            severity="warning",
            summary="the cache is full: requests are preempted and computed again",
            why="lower --max-model-len or the load, or add GPUs",
        ),
        Alert(
            name="Errors",
            expression=f"{errors} / {finished} > 0.01 or {served} > 0.1",
            minutes=5,
            severity="critical",
            summary="requests fail in the engine or end with 5xx",
            why="one in a hundred, or one every ten seconds",
        ),
    ]


def alert_rules(model: str) -> str:
    """Return the alerts as a PrometheusRule's YAML."""
    rules = [
        {
            "alert": "".join(part.capitalize() for part in model.split("-")) + alert.name,
            "expr": alert.expression,
            "for": Noted(f"{alert.minutes}m", alert.why),
            "labels": {"severity": alert.severity, "model": model},
            "annotations": {"summary": f"{model}: {alert.summary}"},
        }
        for alert in alerts(model)
    ]
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": f"{model}-alerts", "labels": {"app.kubernetes.io/name": model}},
        "spec": {"groups": [{"name": f"{model}.moe4", "rules": rules}]},
    }
    return render([document], [f"Alerts for {model} on vLLM. Made by `moe4 deploy dashboard`."])


def _quantiles(metric: str, chosen: str) -> Iterator[tuple[str, str]]:
    rate = f"sum by (le) (rate({metric}_bucket{chosen}[$__rate_interval]))"
    for quantile in QUANTILES:
        yield f"p{100 * quantile:g}", f"histogram_quantile({quantile:g}, {rate})"
