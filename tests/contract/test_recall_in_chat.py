"""`recall` through SGLang's own chat route, tool parser and template: what its client sees, what its prompts are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from agentinfer.compress.composition import Composition
from agentinfer.compress.hidden import Exchange, Exchanges
from agentinfer.compress.memory import Observation
from agentinfer.compress.recall import offering, recalled
from agentinfer.messages import Conversation, Reply
from agentinfer.runtime.compression.recall.turn import RecallingTurn
from tests.agent_sessions import chat, tool, user

pytestmark = pytest.mark.sglang

LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
TAKEN = {2: Observation(2, "look", "{}", "port 4711 is taken")}
CHAT = "/v1/chat/completions"


def called(name: str, **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class Manager:
    """SGLang's tokenizer manager with the embedded model's tokenizer and template, over an engine that says `says`."""

    server_args = None
    image_token_id = None
    served_model_name = "m"
    num_reserved_tokens = 0
    request_logger = SimpleNamespace(log_requests=False, log_requests_level=0)

    def __init__(self, path: str, tokenizer: Any) -> None:
        self.model_path, self.tokenizer = path, tokenizer
        self.model_config = MagicMock(is_multimodal=False, context_len=8192)
        self.model_config.get_default_sampling_params.return_value = {}
        self.model_config.hf_config.model_type = "llama"
        self.context_len = 8192
        self.says: list[str] = []
        self.prompts: list[list[int]] = []

    def config_value(self, name: str) -> str | None:
        return "qwen" if name == "tool_call_parser" else None

    def create_abort_task(self, obj: Any) -> None:
        return None

    async def generate_request(self, obj: Any, request: Any) -> AsyncIterator[dict[str, Any]]:
        self.prompts.append(list(obj.input_ids or self.tokenizer.encode(obj.text)))
        text = self.says.pop(0)
        counts = {"id": f"r{len(self.prompts)}", "prompt_tokens": len(self.prompts[-1]), "cached_tokens": 5}
        for end in range(3, len(text) + 3, 3) if obj.stream else [len(text)]:
            reason = {"type": "stop", "matched": None} if end >= len(text) else None
            about = {**counts, "completion_tokens": 1, "weight_version": "", "finish_reason": reason}
            yield {"text": text[:end], "output_ids": [1], "index": 0, "meta_info": about}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    from agentinfer.models import prepare

    path = str(prepare("smollm2-135m"))
    return path, transformers.AutoTokenizer.from_pretrained(path)


@pytest.fixture
def manager(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Manager:
    serving = pytest.importorskip("sglang.srt.entrypoints.openai.serving_chat")
    settings = MagicMock(
        default_chat_template_kwargs={}, enable_cache_report=True, stream_response_default_include_usage=False,
        incremental_streaming_output=False,
    )  # fmt: skip
    monkeypatch.setattr(serving, "get_serving", lambda: settings)
    monkeypatch.setattr(serving, "get_model", lambda: MagicMock(context_length=8192))
    return Manager(*tokenizer)


def turn(manager: Manager, messages: list[Any], says: list[str], stream: bool) -> tuple[Reply, Any, list[Exchange]]:
    """What the client reads of the answer, its usage, and what was kept; `says` is what the model says, one by one."""
    from fastapi import FastAPI, Request
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat

    templates = MagicMock(chat_template_name=None, jinja_template_content_format="string", force_reasoning=False)
    route = OpenAIServingChat(manager, templates)  # type: ignore[arg-type]
    app = FastAPI()

    async def answer(request: ChatCompletionRequest, raw_request: Request) -> Any:
        return await route.handle_request(request, raw_request)

    answer.__annotations__ = {"request": ChatCompletionRequest, "raw_request": Request}
    app.post(CHAT)(answer)
    manager.says = list(says)
    request: dict[str, Any] = {
        "model": "m",
        "messages": messages,
        "tools": [LOOK],
        "max_completion_tokens": 64,
        "stream": stream,
    }
    if stream:
        request["stream_options"] = {"include_usage": True}
    raw = json.dumps(offering(request)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": CHAT, "root_path": "", "scheme": "http",
             "query_string": b"", "headers": headers, "asgi": {"version": "3.0", "spec_version": "2.3"}}  # fmt: skip
    incoming = [{"type": "http.request", "body": raw, "more_body": False}]
    sent: list[Any] = []
    kept: list[Exchange] = []

    async def receive() -> Any:
        if not incoming:
            await asyncio.Event().wait()
        return incoming.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    serving = RecallingTurn(app, request, partial(recalled, TAKEN), kept.append, lambda: None)
    asyncio.run(asyncio.wait_for(serving(scope, receive, send), 60))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    assert sent[0]["status"] == 200, body
    if not stream:
        return Reply.from_json("chat", json.loads(body)), json.loads(body)["usage"], kept
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    return Reply.from_sse("chat", body), events[-1]["usage"], kept


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_next_prompt_goes_on_from_the_one_in_which_it_was_read(manager: Manager, stream: bool) -> None:
    history = [user("Which port?")]
    # In lengths that are multiples of a piece: the parser forgets words that come in one piece with a call's beginning.
    says = ["I looked it up\n" + called("recall", id="o2"), "It is 4711.\n" + called("look")]
    reply, usage, kept = turn(manager, history, says, stream)
    assert [each.name for each in reply.tool_calls] == ["look"]
    assert reply.text.split() == ["I", "looked", "it", "up", "It", "is", "4711."]
    first, second = manager.prompts
    assert usage["prompt_tokens"] == len(first) + len(second)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 10}
    assert "port 4711 is taken" in manager.tokenizer.decode(second)

    exchanges = Exchanges(1 << 20)
    exchanges.put("s", chat(*history).chain[-1], kept[0])
    history += [reply.message.as_openai(), tool(str(reply.tool_calls[0].id), "nothing")]
    composition = Composition(1, chat(*history).chain[0], tuple(history[:1]), (), TAKEN)
    conversation = Conversation.from_body(CHAT, {"messages": history})
    assert conversation is not None
    turn(manager, exchanges.sent(composition, history, conversation.chain), ["Done."], stream)
    assert manager.prompts[-1][: len(second)] == second


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_beside_another_call_the_client_has_its_own_only(manager: Manager, stream: bool) -> None:
    reply, _, kept = turn(manager, [user("Which?")], [called("look") + "\n" + called("recall", id="o2")], stream)
    assert [each.name for each in reply.tool_calls] == ["look"]
    assert reply.finish_reason == "tool_calls"
    assert [place for place, _ in kept[0].beside] == [1]
    assert kept[0].results[0]["content"] == "port 4711 is taken"
