"""An agent's own loop with a shorter memory: it reads files by one tool until it can answer.

    python examples/compress_loop.py --url http://127.0.0.1:30000/v1 "Which module defines the Settings of compression?"

Any server with the OpenAI chat API and tool calls will do. What the model gets is composed here, in the client; with a
server that runs `--enable-compress` a plain loop has the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from agentinfer.compress.extractive import ExtractiveDistiller
from agentinfer.compress.middleware import MemoryCompressor
from agentinfer.compress.recall import RECALL
from agentinfer.compress.settings import Settings

SESSION = "example"
READ = {
    "type": "function",
    "function": {
        "name": "read",
        "description": "A file's text, or the names in a folder.",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}


async def main() -> None:
    parser = argparse.ArgumentParser(description="An agent that reads files, with a shorter memory.")
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:30000/v1")
    parser.add_argument("--model", default="default")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--threshold-tokens", type=int, default=2_000)
    args = parser.parse_args()
    memory = MemoryCompressor(ExtractiveDistiller(), Settings(threshold_tokens=args.threshold_tokens))
    history: list[dict[str, Any]] = [
        {"role": "system", "content": "Read what you need under the current folder, then answer."},
        {"role": "user", "content": args.question},
    ]
    async with aiohttp.ClientSession() as http:
        for _ in range(args.turns):
            body = {
                "model": args.model,
                "messages": await memory.before_model(SESSION, history),
                "tools": [READ, memory.recall_tool()],
                "max_tokens": 512,
            }
            async with http.post(f"{args.url}/chat/completions", json=body) as response:
                response.raise_for_status()
                answer = await response.json()
            reply = answer["choices"][0]["message"]
            prompt_tokens = answer["usage"]["prompt_tokens"]
            memory.after_model(SESSION, history, reply, prompt_tokens)
            print(f"{len(history)} messages, {len(body['messages'])} sent, {prompt_tokens} tokens")
            history.append(reply)
            if not reply.get("tool_calls"):
                print(reply["content"])
                break
            for call in reply["tool_calls"]:
                history.append({"role": "tool", "tool_call_id": call["id"], "content": run(memory, call["function"])})
    memory.close()


def run(memory: MemoryCompressor, function: dict[str, str]) -> str:
    """A tool's result; what is wrong with a call is its result."""
    if function["name"] == RECALL:
        return memory.handle_recall(SESSION, function["arguments"])
    try:
        path = (Path.cwd() / str(json.loads(function["arguments"])["path"])).resolve()
        if not path.is_relative_to(Path.cwd()):
            return f"{path}: not under the current folder"
        if path.is_dir():
            return "\n".join(sorted(each.name for each in path.iterdir()))
        return path.read_text(encoding="utf-8", errors="replace")[:20_000]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    asyncio.run(main())
