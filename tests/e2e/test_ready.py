"""A server that is ready: the line that says so, and what its clients do not see."""

from __future__ import annotations

import pytest

from tests.live_server import LiveServer

pytestmark = pytest.mark.e2e


def test_ready_line_gives_url_model_device_and_features(server: LiveServer) -> None:
    lines = [line for line in server.log.read_text().splitlines() if line.startswith("agentinfer")]
    assert "agentinfer: no --model-path was given: serving the embedded model smollm2-135m" in lines
    ready = [line for line in lines if line.startswith("agentinfer ready: ")]
    assert len(ready) == 1
    assert ready[0].startswith(f"agentinfer ready: {server.url}  model smollm2-135m  device ")
    assert ready[0].endswith("  features sessions,record,forced_replay")


def test_proofs_are_not_shown_to_clients(server: LiveServer) -> None:
    assert "proof" not in str(server.get("/server_info"))


def test_without_its_flag_there_is_no_prefill_route(server: LiveServer) -> None:
    assert server.post("/agentinfer/prefill", {"text": "a"})[0] in (404, 405)
    assert "agentinfer_prefill" not in server.get("/metrics")
