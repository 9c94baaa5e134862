"""Metrics: the table, the documentation made from it, and the calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from agentinfer.metrics import Metrics, ranking
from agentinfer.metrics.document import markdown_table
from agentinfer.metrics.spec import OTHER
from agentinfer.metrics.turns import METRICS
from agentinfer.sessions import SESSION_STATES

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
SUFFIXES = {"counter": "_total", "histogram": "_seconds", "gauge": ""}


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return Metrics(registry, max_label_values=2)


@pytest.mark.parametrize("spec", [*METRICS, *ranking.METRICS], ids=lambda spec: spec.name)
def test_every_name_carries_prefix_and_unit(spec):
    assert spec.name.startswith("agentinfer_")
    assert spec.name.endswith(SUFFIXES[spec.kind])
    assert spec.help.endswith(".")
    assert bool(spec.buckets) == (spec.kind == "histogram")
    assert list(spec.buckets) == sorted(spec.buckets)


def test_names_are_exposed_as_documented(registry, metrics):
    exposed = {metric.name + ("_total" if metric.type == "counter" else "") for metric in registry.collect()}
    assert exposed == {spec.name for spec in METRICS}


def test_the_document_is_what_the_code_says():
    text = DOCUMENT.read_text()
    assert text.partition("<!-- metrics:begin -->\n")[2].partition("<!-- metrics:end -->")[0] == markdown_table()


def test_importing_the_module_leaves_prometheus_client_alone():
    # SGLang sets the multiprocess folder after plugins were imported, and the client reads it at import.
    code = "import sys, agentinfer.metrics; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def value(registry, name, **labels):
    return registry.get_sample_value(name, labels)


def test_turns(registry, metrics):
    metrics.turn("chat", "ok", True, ttft_s=0.3, latency_s=2.0)
    metrics.turn("chat", "error", False)
    assert value(registry, "agentinfer_turns_total", api="chat", outcome="ok", inferred="true") == 1
    assert value(registry, "agentinfer_turns_total", api="chat", outcome="error", inferred="false") == 1
    assert value(registry, "agentinfer_turn_ttft_seconds_sum", api="chat") == 0.3
    assert value(registry, "agentinfer_turn_latency_seconds_count", api="chat") == 1


def test_tokens_are_split_into_cached_and_computed(registry, metrics):
    metrics.tokens(prompt_tokens=100, cached_tokens=70, completion_tokens=9)
    assert value(registry, "agentinfer_turn_prompt_tokens_total", source="cached") == 70
    assert value(registry, "agentinfer_turn_prompt_tokens_total", source="computed") == 30
    assert value(registry, "agentinfer_turn_completion_tokens_total") == 9


def test_prefix_causes(registry, metrics):
    metrics.prefix("hit")
    metrics.prefix("evicted", tokens_lost=500)
    assert value(registry, "agentinfer_turn_prefix_total", cause="hit") == 1
    assert value(registry, "agentinfer_prefix_lost_tokens_total", cause="evicted") == 500
    assert value(registry, "agentinfer_prefix_lost_tokens_total", cause="hit") is None


def test_label_values_are_capped(registry, metrics):
    for tool in ("bash", "read", "write", "bash", "find"):
        metrics.tool_gap(tool, 1.0)
    metrics.tool_gap(None, 1.0)
    assert value(registry, "agentinfer_tool_gap_seconds_count", tool="bash") == 2
    assert value(registry, "agentinfer_tool_gap_seconds_count", tool=OTHER) == 2
    for number in range(5):
        metrics.hint_error(f"agentinfer.typo{number}")
    assert value(registry, "agentinfer_hint_errors_total", field=OTHER) == 3


def test_totals_kept_elsewhere_are_taken_over_once(registry, metrics):
    counts = dict.fromkeys(SESSION_STATES, 1)
    metrics.sessions(counts, {"begun": 3}, size_bytes=10)
    metrics.sessions({**counts, "idle": 0}, {"begun": 5, "expired": 1}, size_bytes=20)
    metrics.record_dropped(2)
    metrics.record_dropped(2)
    assert value(registry, "agentinfer_sessions", state="idle") == 0
    assert value(registry, "agentinfer_session_bytes") == 20
    assert value(registry, "agentinfer_session_events_total", event="begun") == 5
    assert value(registry, "agentinfer_session_events_total", event="expired") == 1
    assert value(registry, "agentinfer_record_dropped_lines_total") == 2
