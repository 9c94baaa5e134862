"""Calibrating against the real server: costs of the right order, which a simulation takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentinfer.cli import main
from agentinfer.radix_ext.simulator import costs as engine_costs
from tests.live_server import LiveServer
from tests.simulator_builders import session, simulated, turn

pytestmark = pytest.mark.e2e


def test_a_live_server_is_measured_and_simulated(server: LiveServer, tmp_path: Path) -> None:
    out = tmp_path / "costs.json"
    assert main(["calibrate", "--url", server.url, "--quick", "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert {len(record[part]) for part in ("prefill", "decode")} == {3, 4}
    assert record["server"]["kv_tokens"] == 24_576
    found = engine_costs.load(str(out))
    # A small model on a processor: from a laptop's speed to that of a machine where much else runs.
    assert 30 < found.prefill_tokens_per_s < 100_000
    assert 0.0005 < found.steps_s(1, 1, 100) < 2.0
    assert found.max_running == 16
    result, _ = simulated([session("a", turn(500, 50, gap_s=1.0), turn(100, 50))], costs=found, kv_tokens=24_576)
    assert result.turns == 2
    # The second turn finds its context, so it takes less than the first.
    assert result.worst_turn_s < 550 / 30 + 50 * 2.0
