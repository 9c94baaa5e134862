"""What a server learned of its tools is there after a restart, and a damaged file does not keep it from serving."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live_server import SHORT_FLAGS, LiveServer

pytestmark = pytest.mark.e2e

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call>'


def test_tool_latencies_outlive_the_server(launch: Callable[..., LiveServer], tmp_path: Path) -> None:
    kept_in = tmp_path / "learned" / "tools"
    kept_in.parent.mkdir()
    kept_in.write_bytes(b"agentinfer-tool-latency 1 500 0123\n{")
    flags = (*SHORT_FLAGS, "--agentinfer-forced-replay", "--agentinfer-scheduling")
    flags = (*flags, "--agentinfer-sched-latency-file", str(kept_in))
    first = launch(*flags)
    warned = [line for line in first.log.read_text().splitlines() if f"{kept_in} cannot be used" in line]
    assert len(warned) == 1, warned
    assert first.get("/agentinfer/status")["tools"] == {}
    user = {"role": "user", "content": "Search for me."}
    forced = {"forced": {"text": CALL}}
    reply = first.chat([user], max_tokens=64, tools=TOOLS, agentinfer=forced)["choices"][0]["message"]
    time.sleep(0.3)
    result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "Nothing found."}
    first.chat([user, reply, result], max_tokens=4, tools=TOOLS)
    learned = first.get("/agentinfer/status")["tools"]["search"]
    # As an operator ends it: the server's own process ends the others. `stop` would end all of them at once.
    first.process.terminate()
    first.process.wait(60)

    second = launch(*flags)
    kept = second.get("/agentinfer/status")["tools"]["search"]
    assert kept.pop("latest_age_s") > learned.pop("latest_age_s")
    assert kept == learned
    assert (kept["count"], 0.3 <= kept["p50_s"] < 10) == (1, True)
    assert [path.name for path in sorted(kept_in.parent.iterdir())] == ["tools", "tools.set-aside-1"]
