"""An engine that answers by a script over HTTP: what a program sends each of its two models can be read and upset.

A token is a character, so prompts in tokens read as text. The chat templates are the embedded models' own.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.template_rendering import render

BLOCK = (
    "===PROGRESS===\n<reason> it did one two three four five six seven eight nine </reason>\n"
    "<value>TRUE</value>\n===END_PROGRESS==="
)


class _Server(ThreadingHTTPServer):
    # Connections that wait to be taken: by default five, of which a busy machine resets the sixth.
    request_queue_size = 128


class FakeEngine:
    """Serves from its creation until `close`. `requests` are (path, body) in order of arrival.

    `reply`: what is generated, given the prompt. `p_true`: what its checks say. `may_check`: checks wait for it.
    `status`: of every answer but the model's facts; 0 closes the connection without one. `cut_after`: pieces of a
    stream after which its connection breaks. `routes`: those that it has. `busy`: those that it refuses for now.
    """

    def __init__(self, template: str, name: str = "fake") -> None:
        self.template = template
        self.name = name
        self.reply: Callable[[str], str] = lambda prompt: f"reply of {name}"
        self.p_true = 0.9
        self.may_check = threading.Event()
        self.may_check.set()
        self.status = 200
        self.cut_after: int | None = None
        self.routes = {"/tokenize", "/detokenize", "/generate", "/agentinfer/prefill"}
        self.busy: set[str] = set()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def turns(self) -> list[dict[str, Any]]:
        """The requests in which the model spoke: no checks, no prefills."""
        return [
            body for path, body in self.requests if path == "/generate" and not _is_check(body) and _tokens_of(body)
        ]

    def prompts(self) -> list[str]:
        return [text_of(body) for body in self.turns()]

    def sent(self, path: str) -> list[dict[str, Any]]:
        return [body for each, body in self.requests if each == path]

    def checks(self) -> list[str]:
        """The prompts of the checks' scores, each once."""
        return [text_of({"input_ids": body["input_ids"][0]}) for body in self.sent("/generate") if _is_score(body)]

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/tokenize":
            return {"tokens": _ids(self._rendered(body) if "messages" in body else body["prompt"])}
        if path == "/detokenize":
            return {"text": text_of({"input_ids": body["tokens"]})}
        if path == "/agentinfer/prefill":
            return {"prompt_tokens": 1}
        if _is_check(body):
            self.may_check.wait(10)
        if isinstance(body.get("input_ids", body.get("text")), list) and body.get("return_logprob"):
            prompts = body.get("text") or [text_of({"input_ids": ids}) for ids in body["input_ids"]]
            return [self._scored(each, body.get("logprob_start_len", 0)) for each in prompts]
        prompt = text_of(body)
        regex = body["sampling_params"].get("regex") or ""
        text = BLOCK if "PROGRESS" in regex else "FALSE" if "FALSE" in regex else self.reply(prompt)
        if not _tokens_of(body):
            text = ""
        meta = {"prompt_tokens": len(prompt), "completion_tokens": len(text), "cached_tokens": 0}
        return {"text": text, "meta_info": meta | {"finish_reason": {"type": "stop"}}}

    def _rendered(self, body: Mapping[str, Any]) -> str:
        assert body["continue_final_message"], "SGLang makes a user's message of an assistant's last one otherwise"
        *messages, last = body["messages"]
        assert last["role"] == "assistant"
        return render(self.template, messages, add_generation_prompt=True) + last["content"]

    def _scored(self, text: str, start: int) -> dict[str, Any]:
        tokens = [[-1.0, ord(each), each] for each in text[start:]]
        for word, probability in (("TRUE", self.p_true), ("FALSE", 1 - self.p_true)):
            if text.endswith(word) and tokens:
                tokens[-1][0] = math.log(probability) + len(word)
        return {"meta_info": {"input_token_logprobs": tokens, "output_token_logprobs": [], "prompt_tokens": len(text)}}


def text_of(body: Mapping[str, Any]) -> str:
    """A request's prompt as text."""
    ids = body.get("input_ids")
    return "".join(map(chr, ids)) if ids is not None else str(body["text"])


def _ids(text: str) -> list[int]:
    return [ord(each) for each in text]


def _is_score(body: Mapping[str, Any]) -> bool:
    ids = body.get("input_ids")
    return bool(ids) and isinstance(ids[0], list) and text_of({"input_ids": ids[0]}).endswith("TRUE")


def _is_check(body: Mapping[str, Any]) -> bool:
    regex = (body.get("sampling_params") or {}).get("regex") or ""
    return _is_score(body) or "TRUE|FALSE" in regex


def _tokens_of(body: Mapping[str, Any]) -> int:
    return int((body.get("sampling_params") or {}).get("max_new_tokens", 128))


def _handler(engine: FakeEngine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"model_path": f"models/{engine.name}"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            engine.requests.append((self.path, body))
            if self.path not in engine.routes:
                self._send(404, {"detail": "Not Found"})
            elif self.path in engine.busy:
                self._send(503, {"error": {"message": "no room now"}}, {"retry-after": "1"})
            elif engine.status == 0:
                self.close_connection = True
            elif engine.status != 200:
                self._send(engine.status, {"error": {"message": "told to fail"}})
            else:
                answer = engine.answer(self.path, body)
                self._stream(answer) if body.get("stream") else self._send(200, answer)

        def _stream(self, answer: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            text = answer["text"]
            for count in range(1, len(text) + 1):
                if engine.cut_after is not None and count > engine.cut_after:
                    return
                reason = answer["meta_info"]["finish_reason"] if count == len(text) else None
                meta = answer["meta_info"] | {"completion_tokens": count, "finish_reason": reason}
                self.wfile.write(b"data: " + json.dumps({"text": text[:count], "meta_info": meta}).encode() + b"\n\n")
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")

        def _send(self, status: int, body: Any, headers: Mapping[str, str] = {}) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", "content-length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: Any) -> None: ...

    return Handler
