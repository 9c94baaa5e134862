"""Calibration: a pretended server with known costs is measured, and the fit finds them again."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agentinfer.cli import main
from agentinfer.commands.simulate.fitting import CalibrationError, DecodeSample, PrefillSample, fit
from agentinfer.radix_ext.simulator import EngineCosts
from agentinfer.radix_ext.simulator import costs as engine_costs

BASE = EngineCosts()
TRUE = replace(
    BASE, step_s=0.02, sequence_s=0.001, kv_token_s=2e-6, prefill_tokens_per_s=1000.0, request_s=0.03, attention_s=1e-7
)


def prefill_samples(costs: EngineCosts, noise: float = 0.0) -> list[PrefillSample]:
    rng = random.Random(0)
    return [
        PrefillSample(length, (costs.request_s + costs.chunk_s(length, 0)) * (1 + noise * rng.uniform(-1, 1)))
        for length in (32, 128, 512, 2048)
    ]


def decode_samples(costs: EngineCosts, noise: float = 0.0) -> list[DecodeSample]:
    rng = random.Random(1)
    return [
        DecodeSample(
            count, context, count * context, costs.steps_s(1, count, count * context) * (1 + noise * rng.uniform(-1, 1))
        )
        for count in (1, 4, 16)
        for context in (32, 512, 2048)
    ]


def test_the_fit_finds_the_costs_again() -> None:
    found = fit(BASE, prefill_samples(TRUE), decode_samples(TRUE))
    for field in ("step_s", "sequence_s", "kv_token_s", "prefill_tokens_per_s", "request_s", "attention_s"):
        assert getattr(found.costs, field) == pytest.approx(getattr(TRUE, field), rel=1e-6), field
    assert found.prefill.largest < 1e-9
    assert found.decode.largest < 1e-9


def test_no_cost_is_below_zero() -> None:
    """Without any attention cost, noise would often make its least-squares factor negative."""
    for noise in (0.02, 0.1, 0.2):
        found = fit(BASE, prefill_samples(replace(TRUE, attention_s=0.0), noise), decode_samples(TRUE, noise))
        assert min(found.costs.attention_s, found.costs.request_s, found.costs.kv_token_s, found.costs.sequence_s) >= 0
        assert found.prefill.largest < 2 * noise


def test_the_error_is_that_of_the_prediction() -> None:
    samples = prefill_samples(TRUE, noise=0.1)
    found = fit(BASE, samples, decode_samples(TRUE))
    predicted = [found.costs.request_s + found.costs.chunk_s(each.prompt_tokens, 0) for each in samples]
    errors = [abs(guess / each.seconds - 1) for guess, each in zip(predicted, samples, strict=True)]
    assert found.prefill.largest == pytest.approx(max(errors))
    assert found.prefill.mean == pytest.approx(sum(errors) / len(errors))


def test_of_several_samples_of_a_point_the_shortest_counts() -> None:
    disturbed = [replace(sample, seconds=5 * sample.seconds) for sample in prefill_samples(TRUE)]
    found = fit(BASE, [*disturbed, *prefill_samples(TRUE)], decode_samples(TRUE))
    assert found.costs.prefill_tokens_per_s == pytest.approx(1000.0)


def test_times_that_do_not_grow_with_length_are_refused() -> None:
    samples = [PrefillSample(length, 1.0 - length / 10_000) for length in (10, 100, 1000)]
    with pytest.raises(CalibrationError, match="does not grow with their length"):
        fit(BASE, samples, decode_samples(TRUE))


def test_times_that_no_engine_has_are_refused() -> None:
    rng = random.Random(3)
    wild = [replace(sample, seconds=10.0 ** rng.uniform(-4, 1)) for sample in decode_samples(TRUE)]
    with pytest.raises(CalibrationError, match=r"decode times are .* off"):
        fit(BASE, prefill_samples(TRUE), wild)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(CalibrationError, match="two lengths"):
        fit(BASE, prefill_samples(TRUE)[:1], decode_samples(TRUE))
    with pytest.raises(CalibrationError, match="expected times above 0"):
        fit(BASE, [PrefillSample(1, 0.0)], decode_samples(TRUE))


class PretendedEngine:
    """Answers /generate after the time its costs say. Sequences that stream at the same time share their steps."""

    def __init__(self, costs: EngineCosts) -> None:
        self.costs = costs
        self.prompts: list[tuple[int, ...]] = []
        self.kv_tokens, self.max_running, self.status = 4000, 4, 200
        self._streaming: dict[tuple[int, ...], int] = {}

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/server_info", self._info)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/generate", self._generate)
        return app

    async def _info(self, request: web.Request) -> web.Response:
        told = {"max_total_num_tokens": self.kv_tokens, "max_running_requests": self.max_running}
        return web.json_response({**told, "chunked_prefill_size": 512, "version": "0"})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "/some/where/pretended", "max_model_len": 2048}]})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        if self.status != 200:
            return web.Response(status=self.status, text="not now")
        body = await request.json()
        prompt = body["input_ids"]
        self.prompts.append(key := tuple(prompt))
        await asyncio.sleep(self.costs.request_s + self.costs.chunk_s(len(prompt), 0))
        if not body.get("stream"):
            return web.json_response({"meta_info": {"completion_tokens": 1}})
        response = web.StreamResponse()
        await response.prepare(request)
        self._streaming[key] = len(prompt)
        for count in range(1, body["sampling_params"]["max_new_tokens"] + 1):
            await response.write(b"data: " + json.dumps({"meta_info": {"completion_tokens": count}}).encode() + b"\n\n")
            self._streaming[key] += 1
            await asyncio.sleep(self.costs.steps_s(1, len(self._streaming), sum(self._streaming.values())))
        del self._streaming[key]
        await response.write(b"data: [DONE]\n\n")
        return response


def calibrated(engine: PretendedEngine, out: Path) -> int:
    async def run() -> int:
        async with TestServer(engine.app()) as server:
            url = str(server.make_url("")).rstrip("/")
            return await asyncio.to_thread(main, ["calibrate", "--url", url, "--quick", "--json", str(out)])

    return asyncio.run(run())


def test_a_server_is_measured_from_outside(tmp_path: Path, capsys) -> None:
    engine, out = PretendedEngine(TRUE), tmp_path / "costs.json"
    assert calibrated(engine, out) == 0
    record = json.loads(out.read_text())
    found = engine_costs.load(str(out))
    assert (found.chunk_tokens, found.max_running, found.is_mixed) == (512, 4, False)
    # Sleeping takes as long as asked for at least, and longer on a busy machine.
    assert 200 < found.prefill_tokens_per_s < 1500
    assert 0.015 < found.step_s + found.sequence_s < 0.2
    assert record["server"]["model"] == "pretended"
    assert "the fit is off by" in capsys.readouterr().out
    heads = [prompt[:8] for prompt in engine.prompts]
    assert len(set(heads)) == len(heads), "prompts that begin alike would be cached"


def test_points_that_the_server_cannot_take_are_left_out(tmp_path: Path) -> None:
    engine = PretendedEngine(TRUE)
    engine.kv_tokens, engine.max_running = 600, 3
    assert calibrated(engine, tmp_path / "costs.json") == 1  # batches of one size only are left: nothing to fit to
    assert max(map(len, engine.prompts)) < 600


def test_a_server_that_answers_with_an_error_is_named(tmp_path: Path, capsys) -> None:
    engine = PretendedEngine(TRUE)
    engine.status = 503
    assert calibrated(engine, tmp_path / "costs.json") == 1
    assert "answered HTTP 503" in capsys.readouterr().err


def test_no_server_is_named(tmp_path: Path, capsys) -> None:
    assert main(["calibrate", "--url", "http://127.0.0.1:9", "--quick", "--json", str(tmp_path / "o.json")]) == 1
    assert "does not answer as an SGLang server does" in capsys.readouterr().err
