"""The larger embedded model served live: another architecture, with sliding windows, under the same launcher."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live_server import COMMON_FLAGS, LiveServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_gemma_answers_and_its_later_turns_hit_their_prefix(tmp_path: Path) -> None:
    flags = (*COMMON_FLAGS, "--model-path", "embedded:gemma3-270m")
    live = LiveServer(log=tmp_path / "log", flags=flags, model="gemma3-270m")
    try:
        live.start(timeout_s=600)
        history = [{"role": "user", "content": "What is the capital of France?"}]
        first = live.chat(history, max_tokens=16)
        reply = first["choices"][0]["message"]["content"]
        assert "Paris" in reply
        history += [{"role": "assistant", "content": reply}, {"role": "user", "content": "And the capital of Italy?"}]
        second = live.chat(history, max_tokens=16)
        assert "Rome" in second["choices"][0]["message"]["content"]
        cached_tokens = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached_tokens >= first["usage"]["prompt_tokens"]
        (listed,) = live.get("/agentinfer/sessions")["sessions"]
        turns = live.get(f"/agentinfer/sessions/{listed['id']}")["recent_turns"]
        assert [turn["prefix"]["cause"] for turn in turns] == ["first_turn", "hit"]
        assert turns[1]["cached_tokens"] == cached_tokens
    finally:
        live.stop()
