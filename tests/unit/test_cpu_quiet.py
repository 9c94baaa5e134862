"""Warnings of model files that cannot be imported without a GPU: out of the log, until one of them was asked for."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentinfer.runtime.cpu.activate import reason_to_stay_off
from agentinfer.runtime.cpu.quiet import REGISTRY_LOGGER, HeldBack

IGNORED = "Ignore import error when loading sglang.srt.models.%s: No module named 'vllm'"


@pytest.fixture
def held_back() -> Iterator[HeldBack]:
    made, logger = HeldBack(), logging.getLogger(REGISTRY_LOGGER)
    filters, logger.filters = logger.filters, [made]
    yield made
    logger.filters = filters


@pytest.fixture
def registry_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=REGISTRY_LOGGER)
    return caplog


def test_failed_imports_are_kept_and_given_out_once(
    held_back: HeldBack, registry_log: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger(REGISTRY_LOGGER)
    logger.warning(IGNORED, "one")
    logger.warning(IGNORED, "two")
    assert registry_log.messages == []
    held_back.release()
    held_back.release()
    assert registry_log.messages == [IGNORED % "one", IGNORED % "two"]
    assert {record.levelno for record in registry_log.records} == {logging.WARNING}


def test_other_warnings_and_errors_pass(held_back: HeldBack, registry_log: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(REGISTRY_LOGGER)
    logger.warning("No model architectures are specified")
    logger.error("registry is broken")
    assert len(registry_log.messages) == 2
    held_back.release()
    assert len(registry_log.messages) == 2


def test_debug_level_shows_them_at_once(held_back: HeldBack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger=REGISTRY_LOGGER)
    logging.getLogger(REGISTRY_LOGGER).warning(IGNORED, "one")
    assert caplog.messages == [IGNORED % "one"]


# In a process of its own, since hooks cannot be taken back. argv: the architectures that models' configs name, in turn.
LOAD_MODEL_CLASSES = """
import logging, sys
from types import SimpleNamespace
from agentinfer.runtime.seams import ledger
ledger().process = "scheduler"
from sglang.srt.plugins import load_plugins
load_plugins()
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout, force=True)
from sglang.srt.configs.model_config import ModelImpl
from sglang.srt.model_loader import utils
for architecture in sys.argv[1:]:
    config = SimpleNamespace(
        hf_config=SimpleNamespace(architectures=[architecture]), quantization=None, model_impl=ModelImpl.AUTO
    )
    try:
        print("FOUND", utils.get_model_architecture(config)[1], flush=True)
    except Exception as error:
        print("NOT FOUND", architecture, error, flush=True)
"""


@pytest.mark.sglang
def test_loading_a_model_names_failed_imports_only_when_it_is_not_there() -> None:
    """FalconMamba's file needs `causal_conv1d_fn`, which SGLang has for GPUs only."""
    pytest.importorskip("sglang")
    obstacle = reason_to_stay_off({})
    if obstacle is not None:
        pytest.skip(f"the CPU engine stays off: {obstacle}")
    done = subprocess.run(
        [sys.executable, "-c", LOAD_MODEL_CLASSES, "LlamaForCausalLM", "FalconMambaForCausalLM"],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    loading_llama, found, loading_mamba = done.stdout.partition("FOUND LlamaForCausalLM")
    assert found, done.stdout
    assert "Ignore import error" not in loading_llama
    assert loading_mamba.count("WARNING Ignore import error when loading sglang.srt.models.falcon_mamba: ") == 1
    assert "NOT FOUND FalconMambaForCausalLM" in loading_mamba
