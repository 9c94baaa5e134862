"""What one server's sessions said drafts for the next server: the store survives a kill, and changes no answer."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_spec_live import encode, float32_server, generate
from tests.live_server import LiveServer

pytestmark = pytest.mark.e2e

PROMPTS = ("The history of the lighthouse begins", "To repair a bicycle tyre, first", "A recipe for onion soup:")
NUM_TOKENS = 64


def answers(live: LiveServer) -> list[dict[str, Any]]:
    return [generate(live, encode(prompt), NUM_TOKENS, sampling={"ignore_eos": True}) for prompt in PROMPTS]


def steps(found: list[dict[str, Any]]) -> int:
    return sum(answer["meta_info"]["spec_verify_ct"] for answer in found)


def test_store_survives_a_kill_and_drafts_for_the_next_server(tmp_path: Path) -> None:
    sam = ("--speculative-algorithm", "AGENT_SAM", "--no-agentinfer-spec-adapt")
    flags = (*sam, "--agentinfer-spec-store", str(tmp_path / "store"))
    with float32_server(tmp_path, *flags) as live:
        first = answers(live)
        generate(live, encode("One turn more"), 8)  # the turns before it are indexed by the time it ends
        assert live.process is not None
        os.killpg(live.process.pid, signal.SIGKILL)
        live.process.wait(30)
    with float32_server(tmp_path, *flags) as live:
        second = answers(live)
    assert [answer["output_ids"] for answer in second] == [answer["output_ids"] for answer in first]
    # 16 tokens a step at best: everything these requests say was said to the first server.
    assert steps(second) * 2 < steps(first)
