"""Unmodified clients against the live server, each run by its own Python from an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.live_server import LiveServer

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
CLIENTS_PYTHON = Path(os.environ.get("AGENTINFER_CLIENTS_PYTHON", ROOT / ".venv-clients" / "bin" / "python"))


def run_client(script: str, *arguments: object) -> dict:
    """What the client printed as JSON on its last line."""
    assert CLIENTS_PYTHON.exists(), f"{CLIENTS_PYTHON} is missing: `make test` sets it up"
    command = [str(CLIENTS_PYTHON), str(ROOT / "tests" / "e2e" / "clients" / script), *map(str, arguments)]
    # Nothing of the engine's environment may leak into the client's.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "AGENTINFER"))}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**environment, "MSWEA_SILENT_STARTUP": "1"}
    )
    assert done.returncode == 0, f"{script} failed:\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def test_openai_package(server: LiveServer) -> None:
    seen = run_client("openai_client.py", server.url, server.model)
    assert "Paris" in seen["plain"]
    assert seen["streamed"] == seen["plain"]
    assert 1 <= seen["streamed_usage"] <= 12
    assert seen["call"] == seen["streamed_call"] == {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert seen["call_finish"] == "tool_calls"
    # The second turn extends the first: all but the end of its prompt is in the cache.
    assert seen["second_cached"] > 0.5 * seen["second_prompt"]
    assert "Paris" in seen["completion"]
    assert "Paris" in seen["response"]
    assert server.model in seen["models"]
    assert seen["malformed_hint"]["status"] == 400
    assert "agentinfer.turn" in seen["malformed_hint"]["message"]

    session = server.get("/agentinfer/sessions/weather-agent")
    assert session["turns"] >= 2


def test_anthropic_package(server: LiveServer) -> None:
    seen = run_client("anthropic_client.py", server.url, server.model)
    assert "Paris" in seen["plain"]
    assert seen["streamed"] == seen["plain"]
    assert seen["use"] == {"name": "get_weather", "input": {"city": "Paris"}}
    assert seen["stop_reason"] == "tool_use"
    assert seen["second_tokens"] > 0
    assert seen["malformed_hint"]["status"] == 400
    assert "agentinfer.last" in seen["malformed_hint"]["message"]


def test_mini_swe_agent_solves_a_task_in_three_steps(server: LiveServer, tmp_path: Path) -> None:
    seen = run_client("mini_swe_agent.py", server.url, server.model, tmp_path)
    assert seen == {"exit_status": "Submitted", "submission": "step\nstep\nstep\n", "calls": 3}
    # Its three requests carried no session id of any kind: they were recognised by what they said.
    newest = max(server.get("/agentinfer/sessions")["sessions"], key=lambda session: session["last_seen_unix_s"])
    assert newest["inferred"] is True
    assert newest["turns"] == 3
    assert (tmp_path / "run.traj.json").exists()
