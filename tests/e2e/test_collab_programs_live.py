"""Frontend programs on two real engines: the examples as they are, prompts token for token, forks, streams, checks."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sglang.lang")

import sglang as sgl
from sglang.lang.backend import runtime_endpoint
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

from agentinfer.collab_lang.controller import Model, Verdict
from agentinfer.collab_lang.programs import CollabBackend, Tools, collab_trail
from agentinfer.collab_lang.programs.branch import branch_of
from agentinfer.collab_lang.programs.engine import Engine
from agentinfer.collab_lang.settings import Check, CollabSettings
from agentinfer.models import prepare
from tests.live_server import LiveServer

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
# Exact arithmetic, one thread each: equal means equal, and the two do not slow each other.
FLAGS = ("--max-total-tokens", "6144", "--max-running-requests", "16", "--dtype", "float32")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, LiveServer]]:
    """Large and small."""
    logs = tmp_path_factory.mktemp("pair")
    engines = tuple(
        LiveServer(
            log=logs / name,
            flags=(*FLAGS, "--model-path", str(prepare(name, dtype="float32")), "--served-model-name", name, *own),
            env={"OMP_NUM_THREADS": "1"},
            model=name,
        )
        # The small one has our route for prefills; the large one is asked for them as stock SGLang would be.
        for name, own in (("gemma3-270m", ()), ("smollm2-135m", ("--agentinfer-prefill-route",)))
    )
    try:
        with ThreadPoolExecutor() as both:
            list(both.map(lambda engine: engine.start(), engines))
        yield engines  # type: ignore[misc]
    finally:
        for engine in engines:
            engine.stop()


def backend(pair: tuple[LiveServer, LiveServer], **changes: Any) -> CollabBackend:
    settings = CollabSettings(**{"warm_up_steps": 1, "check": Check.VERDICT, "max_steps": None, **changes})
    return CollabBackend(RuntimeEndpoint(pair[0].url), RuntimeEndpoint(pair[1].url), settings)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What SGLang's endpoint sends while the test runs: address and body."""
    bodies: list[tuple[str, dict[str, Any]]] = []
    original = runtime_endpoint.http_request

    def recording(url: str, json: Any = None, **options: Any) -> Any:
        bodies.append((url, json))
        return original(url, json=json, **options)

    monkeypatch.setattr(runtime_endpoint, "http_request", recording)
    return bodies


def tokenizer(engine: LiveServer) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(engine.get("/model_info")["tokenizer_path"])


def tool_time(state: Any, timeout_s: float = 60) -> None:
    """A tool that runs until the step's check is there."""
    state.sync()
    assert branch_of(state.stream_executor).check.done.wait(timeout_s)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("collab_loop", ["0 large because opening", "answer: "]),
        ("collab_research", ["causes: ", "timing: ", "consequences: ", "planner and writer: large/"]),
        ("collab_self_check", ["Which is heavier", "What is the third month", "switches"]),
    ],
)
def test_the_example_runs_as_it_is(pair: tuple[LiveServer, LiveServer], name: str, shown: list[str]) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--large-url", pair[0].url, "--small-url", pair[1].url]
    short = {"collab_loop": ["--steps", "4"], "collab_research": ["--rounds", "1"], "collab_self_check": []}[name]
    found = subprocess.run([*command, *short], capture_output=True, text=True, timeout=400, check=False)
    assert found.returncode == 0, found.stderr
    assert "Error in stream_executor" not in found.stderr
    for each in shown:
        assert each in found.stdout


def look_up(what: str) -> str:
    """A fact."""
    return f"{what} is known"


TOOLS = Tools(look_up)


def test_each_model_gets_its_own_tokenizers_rendering(
    pair: tuple[LiveServer, LiveServer], sent: list[tuple[str, dict[str, Any]]]
) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.system("Be brief.")
        s += sgl.user("Name a colour, e.g. <b>blue</b> or “rouge”.")
        for number in range(4):
            s += sgl.assistant(TOOLS.gen(f"step_{number}", max_tokens=40, temperature=0))
            TOOLS.run(s, f"step_{number}")

    state = program.run(backend=backend(pair, warm_up_steps=2, check=Check.OFF))
    state.sync()
    messages = state.messages()
    assert [each["role"] for each in messages] == ["system", "user", *["assistant", "tool"] * 4]
    spoken = [(url, body) for url, body in sent if body and body["sampling_params"]["max_new_tokens"] == 40]
    assert len(spoken) == 4
    for number, (url, body) in enumerate(spoken):
        engine = pair[0] if number < 2 else pair[1]
        before = messages[: 2 + 2 * number]
        rendered = tokenizer(engine).apply_chat_template(before, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(engine).encode(rendered, add_special_tokens=False)
        assert url == engine.url + "/generate"
        assert body["input_ids"] == ids
        meta = state.get_meta_info(f"step_{number}")
        assert meta["prompt_tokens"] == len(ids)
        assert meta["agentinfer"]["model"] == ("large" if number < 2 else "small")


def test_without_checks_and_switches_it_is_the_large_model_token_for_token(pair: tuple[LiveServer, LiveServer]) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.system("Be brief.")
        for number, text in enumerate(("Name a colour.", "And a fruit of that colour?", "Spell it.")):
            s += sgl.user(text)
            s += sgl.assistant(sgl.gen(f"step_{number}", max_tokens=24, temperature=0))

    # ChatML is SmolLM2's own format, so here SGLang's guess by a name is right; Gemma's plain text has no name there.
    smollm = pair[1].url
    plain = program.run(backend=RuntimeEndpoint(smollm, chat_template_name="chatml"))
    plain.sync()
    pair[1].post("/flush_cache", {})
    settings = CollabSettings(warm_up_steps=10, check=Check.OFF)
    mine = program.run(backend=CollabBackend(smollm, pair[0].url, settings))
    assert mine.messages() == plain.messages()
    for name in ("step_0", "step_1", "step_2"):
        counts = [
            {key: state.get_meta_info(name)[key] for key in ("prompt_tokens", "completion_tokens")}
            for state in (plain, mine)
        ]
        assert counts[0] == counts[1]


def test_text_without_messages_is_the_large_models_own(pair: tuple[LiveServer, LiveServer]) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "The capital of France is" + sgl.gen("one", max_tokens=12, temperature=0, stop="\n")
        s += "\nThe capital of Italy is" + sgl.gen("two", max_tokens=12, temperature=0, stop="\n")

    plain = program.run(backend=RuntimeEndpoint(pair[0].url))
    mine = program.run(backend=backend(pair, warm_up_steps=10, check=Check.OFF))
    assert mine.text() == plain.text()
    for name in ("one", "two"):
        assert mine.get_meta_info(name)["prompt_tokens"] == plain.get_meta_info(name)["prompt_tokens"]


@pytest.mark.parametrize("check", [Check.VERDICT, Check.BLOCK])
def test_checks_yield_verdicts_with_a_probability(pair: tuple[LiveServer, LiveServer], check: Check) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Name a colour.")
        for number in range(2):
            s += sgl.assistant(sgl.gen(f"step_{number}", max_tokens=12, temperature=0))
            tool_time(s)
            s += sgl.user("And another one.")

    trail = collab_trail(program.run(backend=backend(pair, check=check)), wait_s=60)
    assert [str(step.model) for step in trail] == ["large", "small"]
    for step in trail:
        assert step.verdict is not Verdict.MISSING
        assert step.p_true is not None
        assert 0 < step.p_true < 1
        assert step.verdict is (Verdict.PROGRESS if step.p_true >= 0.5 else Verdict.NO_PROGRESS)
        assert bool(step.why) is (check is Check.BLOCK)


def test_forks_stream_select_and_second_gens(pair: tuple[LiveServer, LiveServer]) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Name two colours.")
        s += sgl.assistant(
            "First: "
            + sgl.gen("first", max_tokens=6, temperature=0)
            + " Second: "
            + sgl.gen("second", max_tokens=6, temperature=0)
        )
        forks = s.fork(2)
        for fork, word in zip(forks, ("warm", "cold"), strict=True):
            fork += sgl.user(f"Which of them is {word}?")
            fork += sgl.assistant(sgl.select("choice", ["the first", "the second"]))
        s["models"] = [fork.get_meta_info("choice")["agentinfer"]["model"] for fork in forks]
        forks.join()
        s += sgl.user("Thanks.")
        s += sgl.assistant(sgl.gen("end", max_tokens=8, temperature=0, regex="(?:Bye|See you)!"))

    both = backend(pair, check=Check.OFF)
    state = program.run(backend=both, stream=True)
    pieces = list(state.text_iter("second"))
    assert len([each for each in pieces if each]) > 1
    assert "".join(pieces) == state["second"]
    assert "".join(state.text_iter("end")) in ("Bye!", "See you!")
    state.sync()
    assert [state.get_meta_info(name)["agentinfer"]["step"] for name in ("first", "second", "end")] == [0, 0, 1]
    assert [state.get_meta_info(name)["agentinfer"]["model"] for name in ("first", "second", "end")] == [
        "large",
        "large",
        "small",
    ]
    assert state["models"] == ["small", "small"]
    assert set(state["choice"]) <= {"the first", "the second"}
    alone = program.run(backend=backend(pair, check=Check.OFF))
    assert alone.text() == state.text()


def test_select_says_what_the_endpoint_alone_says(pair: tuple[LiveServer, LiveServer]) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.system("Be brief.")
        s += sgl.user("What is the capital of France?")
        s += sgl.assistant("It is " + sgl.select("city", ["Paris", "Rome", "New York"]))

    plain = program.run(backend=RuntimeEndpoint(pair[1].url, chat_template_name="chatml"))
    mine = program.run(backend=CollabBackend(pair[1].url, pair[0].url, CollabSettings(check=Check.OFF)))
    assert mine["city"] == plain["city"]
    name = "normalized_prompt_logprobs"
    assert mine.get_meta_info("city")[name] == pytest.approx(plain.get_meta_info("city")[name], abs=0.3)


def test_a_switch_finds_its_prompt_prefilled(
    pair: tuple[LiveServer, LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there = threading.Event()
    original = Engine.prefill

    def prefill(engine: Engine, turn: Any) -> None:
        original(engine, turn)
        is_there.set()

    monkeypatch.setattr(Engine, "prefill", prefill)

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Here is a report. " + "The tide rises twice a day. " * 60 + "What rises?")
        s += sgl.assistant(sgl.gen("step_0", max_tokens=16, temperature=0))
        s.sync()
        assert is_there.wait(60)  # the tool runs as long
        s += sgl.user("And when?")
        s += sgl.assistant(sgl.gen("step_1", max_tokens=8, temperature=0))
        tool_time(s)

    pair[1].post("/flush_cache", {})
    both = backend(pair)
    state = program.run(backend=both)
    meta = state.get_meta_info("step_1")
    assert meta["agentinfer"]["model"] == "small"
    assert meta["cached_tokens"] >= 0.9 * (meta["prompt_tokens"] - 20)
    assert both._engines[Model.SMALL]._has_prefill
    assert both.hand_overs.switches == 1
    assert both.hand_overs.prefilled_share is not None
    assert both.hand_overs.prefilled_share >= 0.9


def test_the_engine_sees_one_session_of_the_program(pair: tuple[LiveServer, LiveServer]) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Name a colour.")
        s += sgl.assistant(sgl.gen("step_0", max_tokens=4, temperature=0))
        s += sgl.user("Another.")
        s += sgl.assistant(sgl.gen("step_1", max_tokens=4, temperature=0))

    state = program.run(backend=backend(pair, warm_up_steps=2, check=Check.OFF))
    state.sync()
    session = branch_of(state.stream_executor).session
    known = pair[0].get(f"/agentinfer/sessions/{session}")
    assert len(known["recent_turns"]) == 2


# The last test of the file: it takes one engine away.
def test_the_program_goes_on_when_an_engine_is_killed(pair: tuple[LiveServer, LiveServer]) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Name a colour.")
        s += sgl.assistant(sgl.gen("step_0", max_tokens=4, temperature=0))
        s.sync()
        pair[1].stop()
        for number in (1, 2):
            s += sgl.user("Another.")
            s += sgl.assistant(sgl.gen(f"step_{number}", max_tokens=4, temperature=0))

    state = program.run(backend=backend(pair, check=Check.OFF))
    trail = collab_trail(state)
    assert state.error() is None
    assert [(str(step.model), step.reason) for step in trail] == [
        ("large", "opening"),
        ("large", "model_unavailable"),
        ("large", "model_unavailable"),
    ]
