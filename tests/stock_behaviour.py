"""What a client and an operator can see of one server, for comparing our launcher with the stock one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentinfer.models import prepare
from tests.live_server import LiveServer

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4,",
    "Once upon a time there was a small robot who",
    '{"name": "Ada", "born":',
)


@dataclass(frozen=True)
class Behaviour:
    """Answers to fixed requests, and the server's surface after them."""

    token_ids: list[list[int]]
    chat: list[str]
    models: Any
    openapi_paths: frozenset[str]
    metric_names: frozenset[str]


def exact_server(module: str, flags: tuple[str, ...], log_dir: Path) -> LiveServer:
    """A server with exact arithmetic, so that equal means equal: one thread and float32. Not started."""
    model = str(prepare("smollm2-135m", dtype="float32"))
    # Room for the 20 prompts that are compared with transformers, all in one batch, and for the longest of them.
    room = ("--max-total-tokens", "4096", "--max-running-requests", "20")
    exact = ("--model-path", model, "--served-model-name", "m", "--dtype", "float32", "--enable-metrics")
    return LiveServer(
        log=log_dir / "log",
        module=module,
        flags=(*room, *exact, *flags),
        env={"OMP_NUM_THREADS": "1"},
        model="m",
    )


def observe(live: LiveServer) -> Behaviour:
    """The behaviour of a server that has answered nothing yet: some metrics appear with the first request of a kind."""
    token_ids = []
    for prompt in PROMPTS:
        body = {"text": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": 12}}
        status, answer = live.post("/generate", body)
        assert status == 200, answer
        token_ids.append(answer["output_ids"])
    history = [{"role": "user", "content": "Name a colour."}]
    chat = []
    for _ in range(2):
        reply = live.chat(history, max_tokens=8)["choices"][0]["message"]["content"]
        chat.append(reply)
        history += [{"role": "assistant", "content": reply}, {"role": "user", "content": "And another one."}]
    models = live.get("/v1/models")
    for card in models["data"]:
        card.pop("created", None)
    return Behaviour(
        token_ids=token_ids,
        chat=chat,
        models=models,
        openapi_paths=frozenset(live.get("/openapi.json")["paths"]),
        metric_names=frozenset(re.findall(r"^# TYPE (\S+)", live.get("/metrics"), re.MULTILINE)),
    )
