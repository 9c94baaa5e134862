"""With every feature off the server is stock SGLang; with every feature on the answers are still stock's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from agentinfer.models import prepare
from tests.live_server import COMMON_FLAGS, LiveServer

pytestmark = pytest.mark.e2e

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4,",
    "Once upon a time there was a small robot who",
    '{"name": "Ada", "born":',
)
# Exact arithmetic: one thread and float32, so that equal means equal.
EXACT = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Behaviour:
    """What a client and an operator can see of one server."""

    token_ids: list[list[int]]
    chat: list[str]
    models: Any
    openapi_paths: frozenset[str]
    metric_names: frozenset[str]


def observe(module: str, flags: tuple[str, ...], log_dir: Any) -> Behaviour:
    model = str(prepare("smollm2-135m", dtype="float32"))
    common = (
        *COMMON_FLAGS,
        "--model-path",
        model,
        "--served-model-name",
        "m",
        "--dtype",
        "float32",
        "--enable-metrics",
    )
    with LiveServer(log=log_dir / "log", module=module, flags=(*common, *flags), env=EXACT, model="m") as live:
        token_ids = []
        for prompt in PROMPTS:
            body = {"text": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": 24}}
            status, answer = live.post("/generate", body)
            assert status == 200, answer
            token_ids.append(answer["output_ids"])
        history = [{"role": "user", "content": "Name a colour."}]
        chat = []
        for _ in range(2):
            reply = live.chat(history, max_tokens=16)["choices"][0]["message"]["content"]
            chat.append(reply)
            history += [{"role": "assistant", "content": reply}, {"role": "user", "content": "And another one."}]
        models = live.get("/v1/models")
        for card in models["data"]:
            card.pop("created", None)
        metrics = live.get("/metrics")
        return Behaviour(
            token_ids=token_ids,
            chat=chat,
            models=models,
            openapi_paths=frozenset(live.get("/openapi.json")["paths"]),
            metric_names=frozenset(re.findall(r"^# TYPE (\S+)", metrics, re.MULTILINE)),
        )


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Behaviour:
    return observe("sglang.launch_server", (), tmp_path_factory.mktemp("stock"))


def test_features_off_is_stock(stock: Behaviour, tmp_path) -> None:
    ours = observe("agentinfer.launch_server", ("--no-agentinfer-sessions",), tmp_path)
    assert ours == stock


def test_features_on_change_no_answer(stock: Behaviour, tmp_path) -> None:
    flags = ("--agentinfer-forced-replay", "--agentinfer-record", str(tmp_path / "record.jsonl"))
    ours = observe("agentinfer.launch_server", flags, tmp_path)
    assert ours.token_ids == stock.token_ids
    assert ours.chat == stock.chat
    assert ours.models == stock.models
    assert ours.metric_names > stock.metric_names
    assert all(name.startswith("agentinfer_") for name in ours.metric_names - stock.metric_names)
    assert all(path.startswith("/agentinfer/") for path in ours.openapi_paths - stock.openapi_paths)
