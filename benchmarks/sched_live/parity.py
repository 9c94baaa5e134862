"""Free greedy replies in float32, token for token: AgentSched against stock, request by request.

    python -m benchmarks.sched_live.parity --trace FILE --out benchmarks/results/sched_live_parity.json

The sessions run in the same closed loop as in the comparison, on a cache that is too small for them, so that both
servers evict, recompute and order differently. The recorded replies go on in the history: every prompt is the same on
both, and a difference stays within its request. One thread and float32, as products over 16-bit numbers depend on what
else is in the batch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
from tokenizers import Tokenizer

from agentinfer.models import prepare
from agentinfer.replay.render import RequestOptions, request_body
from agentinfer.replay.session import Session
from agentinfer.replay.traces import read_trace
from benchmarks.cpu_engine import machine
from benchmarks.live_server import LiveServer
from benchmarks.sched_live import workload
from benchmarks.sched_live.policies import OURS, policies

MODEL = "smollm2-135m"
Replies = dict[tuple[str, int], tuple[list[int], int]]
"""By session and turn: the reply's token ids and the cached prompt tokens."""


async def replies(url: str, sessions: list[Session], options: RequestOptions, live: int) -> Replies:
    """What the server answers, greedily. Raises aiohttp.ClientResponseError where it refuses a turn."""
    found: Replies = {}
    waiting = iter(sessions)

    async def client(http: aiohttp.ClientSession) -> None:
        for session in waiting:
            for turn in session.turns:
                body = request_body(session, turn, session.id, options)
                body |= {"stream": False, "return_token_ids": True}
                del body["stream_options"]
                async with http.post(url + "/v1/chat/completions", json=body) as response:
                    response.raise_for_status()
                    answer = await response.json()
                details = answer["usage"].get("prompt_tokens_details") or {}
                tokens = answer["choices"][0]["response_token_ids"]
                found[session.id, turn.index] = (tokens, details.get("cached_tokens", 0))

    timeout = aiohttp.ClientTimeout(total=600.0)
    async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as clients:
        for _ in range(live):
            clients.create_task(client(http))
    return found


def compare(stock: Replies, ours: Replies) -> dict[str, Any]:
    """Counts, and where requests differ: at which token."""
    assert stock.keys() == ours.keys()
    different = []
    for key in sorted(stock):
        before, after = stock[key][0], ours[key][0]
        if before != after:
            pairs = zip(before, after, strict=False)
            place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
            different.append({"session": key[0], "turn": key[1], "first_different_token": place})
    return {
        "requests": len(stock),
        "tokens": sum(len(tokens) for tokens, _ in stock.values()),
        "requests_with_other_cached_tokens": sum(stock[key][1] != ours[key][1] for key in stock),
        "different": different,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trace", required=True)
    add("--out", type=Path, default=Path("benchmarks/results/sched_live_parity.json"))
    add("--sessions", type=int, default=6, help="all live at once")
    add("--oversubscription", type=float, default=2.0)
    add("--max-tokens", type=int, default=24, help="of a reply")
    add("--seed", type=int, default=0)
    add("--log-dir", type=Path, default=Path("/tmp"))
    arguments = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(prepare(MODEL) / "tokenizer.json"))
    cut = workload.Cut(turns=5, first_tokens=150, output_tokens=80)
    work = workload.make(read_trace(arguments.trace), tokenizer, cut, arguments.sessions, arguments.seed)
    size = work.kv_tokens(arguments.sessions, arguments.oversubscription)
    options = RequestOptions(MODEL, False, send_hints=True, max_tokens=arguments.max_tokens, temperature=0.0)
    common = ["--model-path", str(prepare(MODEL, "float32")), "--served-model-name", MODEL, "--dtype", "float32"]
    common += ["--max-total-tokens", str(size), "--max-running-requests", "8", "--enable-cache-report"]
    answers: dict[str, Replies] = {}
    for name in ("fcfs", OURS):
        log = arguments.log_dir / f"sched_live_parity-{name}.log"
        with LiveServer([*common, *policies(1)[name].flags], log, threads=1) as server:
            answers[name] = asyncio.run(replies(server.url, work.sessions, options, arguments.sessions))
    compared = compare(answers["fcfs"], answers[OURS])
    report = {
        "format": "agentinfer.benchmark.sched_live_parity",
        "version": 1,
        "command": f"python -m benchmarks.sched_live.parity --trace $AGENTINFER_TRACES/{Path(arguments.trace).name} "
        f"--sessions {arguments.sessions} --oversubscription {arguments.oversubscription:g} --seed {arguments.seed}",
        "machine": machine(),
        "oversubscription": arguments.oversubscription,
        "kv_tokens": size,
        **compared,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{compared['requests']} requests, {compared['tokens']} tokens, {len(compared['different'])} different")


if __name__ == "__main__":
    main()
