"""AGENT_SAM in the engine's registry: whole when it is on, absent when it is off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from agentinfer.config import AgentInferConfig, SpeculationConfig

pytestmark = pytest.mark.sglang

# In a process of its own, since a registration cannot be taken back.
PROBE = """
import json
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
public = [name for name, value in vars(SpeculativeAlgorithm).items() if callable(value) and not name.startswith("_")]
try:
    ours = SpeculativeAlgorithm.from_string("agent_sam")
except ValueError as error:
    print("PROBE" + json.dumps({"error": str(error)}))
else:
    asked = ("is_ngram", "is_speculative", "has_draft_kv", "need_topk", "carries_draft_hidden_states", "is_eagle")
    print("PROBE" + json.dumps({
        "missing": [name for name in public if not hasattr(ours, name)],
        "answers": {name: getattr(ours, name)() for name in asked},
        "overlap": ours.supports_overlap,
    }))
"""


def probe(config: AgentInferConfig) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTINFER_")}
    environment |= {"AGENTINFER_CONFIG": config.to_json(), "SGLANG_USE_CPU_ENGINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("PROBE")]
    assert lines, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("PROBE"))
    return result


def test_algorithm_answers_whatever_the_engine_asks_of_one() -> None:
    seen = probe(AgentInferConfig(speculation=SpeculationConfig(speculation=True)))
    assert seen["missing"] == []
    assert seen["answers"] == {
        "is_ngram": True,
        "is_speculative": True,
        "has_draft_kv": False,
        "need_topk": False,
        "carries_draft_hidden_states": False,
        "is_eagle": False,
    }
    assert seen["overlap"]


def test_algorithm_is_unknown_to_an_engine_without_the_feature() -> None:
    assert "Unknown speculative algorithm" in probe(AgentInferConfig())["error"]
