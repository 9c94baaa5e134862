"""Times of a running server's work, taken through its /generate route with prompts that it cannot have cached."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from agentinfer.clock import Clock, SystemClock
from agentinfer.commands.simulate.fitting import CalibrationError, DecodeSample, PrefillSample
from agentinfer.radix_ext.simulator import EngineCosts
from agentinfer.replay.client import get_json

# Ids that any vocabulary has and that no tokenizer uses for control.
_TOKEN_IDS = (500, 4000)
_TIMEOUT_S = 600.0
# Where chunked prefill is off, a prompt is one chunk.
_NO_CHUNKS = 1 << 20


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured: prompts of these lengths; batches of these sizes with contexts of these lengths."""

    prompt_tokens: tuple[int, ...]
    sequences: tuple[int, ...]
    context_tokens: tuple[int, ...]
    decode_steps: int
    repeats: int


FULL = Grid((32, 128, 512, 1024, 2048), (1, 2, 4, 8, 16), (32, 512, 1536), 24, 2)
QUICK = Grid((32, 256, 768), (1, 4), (32, 384), 12, 1)


@dataclass(frozen=True, slots=True)
class Server:
    """What a server tells of itself. `base` holds its settings, and preset costs where they are to be measured."""

    url: str
    model: str
    version: str
    device: str
    longest_tokens: int
    kv_tokens: int
    base: EngineCosts


async def inspect(http: aiohttp.ClientSession, url: str) -> Server:
    """Raises CalibrationError where no SGLang server answers."""
    info = await get_json(http, url + "/server_info") or await get_json(http, url + "/get_server_info")
    models = await get_json(http, url + "/v1/models")
    if not isinstance(info, dict) or not isinstance(info.get("max_total_num_tokens"), int):
        raise CalibrationError(f"{url}/server_info does not answer as an SGLang server does; is one there? Try --url")
    card: dict[str, Any] = next(iter((models or {}).get("data") or ()), {})
    kv_tokens = info["max_total_num_tokens"]
    base = EngineCosts(
        chunk_tokens=_positive(info.get("chunked_prefill_size"), _NO_CHUNKS),
        max_running=_positive(info.get("max_running_requests"), EngineCosts().max_running),
        is_mixed=bool(info.get("enable_mixed_chunk")),
    )
    return Server(
        url=url,
        model=str(card.get("id", "")).rstrip("/").rpartition("/")[2],
        version=str(info.get("version")),
        device=str(info.get("device")),
        longest_tokens=min(kv_tokens, _positive(card.get("max_model_len"), kv_tokens)) - 1,
        kv_tokens=kv_tokens,
        base=base,
    )


class Prober:
    """Sends requests to one server, one measurement at a time. `told` hears a line about each."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        server: Server,
        rng: random.Random,
        clock: Clock | None = None,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._http = http
        self._server = server
        self._random = rng
        self._clock = clock or SystemClock()
        self._told = told

    async def prefill(self, grid: Grid) -> list[PrefillSample]:
        """Every length that the server takes, each as often as the grid says, after one request to warm up."""
        await self._first_token_s(grid.prompt_tokens[0])
        samples = []
        for length in grid.prompt_tokens:
            if length + 1 > self._server.longest_tokens:
                continue
            for _ in range(grid.repeats):
                samples.append(PrefillSample(length, await self._first_token_s(length)))
            self._told(f"prefill of {length} tokens: {samples[-1].seconds:.4f} s")
        return samples

    async def decode(self, grid: Grid) -> list[DecodeSample]:
        """Every batch that fits, each as often as the grid says."""
        samples = []
        for sequences in grid.sequences:
            for context in grid.context_tokens:
                length = context + grid.decode_steps
                # A batch that comes near the cache's size would be taken apart.
                if sequences > self._server.base.max_running or sequences * length > 0.8 * self._server.kv_tokens:
                    continue
                if length > self._server.longest_tokens:
                    continue
                for _ in range(grid.repeats):
                    samples.append(await self._decode(sequences, context, grid.decode_steps))
                self._told(f"decode of {sequences} x {context} tokens: {samples[-1].seconds:.4f} s a step")
        return samples

    async def _first_token_s(self, length: int) -> float:
        body = {"input_ids": self._prompt(length), "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
        begun_s = self._clock.monotonic_s()
        async with self._post(body) as response:
            await _check(response)
            await response.read()
        return self._clock.monotonic_s() - begun_s

    async def _decode(self, sequences: int, context: int, steps: int) -> DecodeSample:
        """From when all sequences decode to when the first ends, seen by all of them."""
        streams = await asyncio.gather(*(self._stream(context, steps) for _ in range(sequences)))
        begun_s = max(stream[0][0] for stream in streams)
        ended_s = min(stream[-1][0] for stream in streams)
        inside = [[entry for entry in stream if begun_s <= entry[0] <= ended_s] for stream in streams]
        # Each stream covers its own part of the time in which all decode; the longest is the least rounded.
        seen = max(filter(None, inside), key=lambda entries: entries[-1][1] - entries[0][1], default=[])
        tokens = seen[-1][1] - seen[0][1] if seen else 0
        if tokens < 2:
            raise CalibrationError(
                f"{sequences} sequences of {context} tokens did not decode {steps} tokens together; is the "
                "server busy with others? Measure an idle one"
            )
        seconds = (seen[-1][0] - seen[0][0]) / tokens
        middle = context + (seen[0][1] + seen[-1][1]) / 2
        return DecodeSample(sequences, context, sequences * middle, seconds)

    async def _stream(self, context: int, steps: int) -> list[tuple[float, int]]:
        """When how many tokens were there."""
        sampling = {"max_new_tokens": steps, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": self._prompt(context), "sampling_params": sampling, "stream": True}
        seen: list[tuple[float, int]] = []
        async with self._post(body) as response:
            await _check(response)
            async for line in response.content:
                if line.startswith(b"data: {"):
                    meta = json.loads(line.removeprefix(b"data: ")).get("meta_info") or {}
                    seen.append((self._clock.monotonic_s(), int(meta.get("completion_tokens", 0))))
        if not seen or seen[-1][1] != steps:
            raise CalibrationError(
                f"asked for {steps} tokens, got {seen[-1][1] if seen else 0} from {self._server.url}"
            )
        return seen

    def _post(self, body: dict[str, Any]) -> Any:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        return self._http.post(self._server.url + "/generate", json=body, timeout=timeout)

    def _prompt(self, length: int) -> list[int]:
        return [self._random.randrange(*_TOKEN_IDS) for _ in range(length)]


async def measure(
    url: str, grid: Grid, rng: random.Random, told: Callable[[str], None] = lambda _: None
) -> tuple[Server, list[PrefillSample], list[DecodeSample]]:
    """Raises CalibrationError where the server does not answer as expected."""
    async with aiohttp.ClientSession() as http:
        try:
            server = await inspect(http, url)
            prober = Prober(http, server, rng, told=told)
            return server, await prober.prefill(grid), await prober.decode(grid)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CalibrationError(f"{url}: {error or type(error).__name__}") from error


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        text = (await response.text())[:200].strip()
        raise CalibrationError(f"{response.url} answered HTTP {response.status}: {text}")


def _positive(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise
