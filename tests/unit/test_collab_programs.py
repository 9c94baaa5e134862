"""Frontend programs on two models, with engines that answer by a script: who speaks, what each is sent, what fails."""

from __future__ import annotations

import gc
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("sglang.lang")
pytest.importorskip("jinja2")

import sglang as sgl
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

from agentinfer.clock import ManualClock
from agentinfer.collab_lang.controller import Verdict
from agentinfer.collab_lang.programs import CollabBackend, CollabError, collab, collab_trail
from agentinfer.collab_lang.programs.branch import branch_of
from agentinfer.collab_lang.settings import Check, CollabSettings
from agentinfer.models.catalogue import find_model
from tests.fake_engine import FakeEngine
from tests.template_rendering import render

pytestmark = pytest.mark.sglang

GEMMA3 = find_model("gemma3-270m").chat_template
SMOLLM2 = find_model("smollm2-135m").chat_template
# Raises where roles do not alternate or are unknown, as Gemma's and Mistral's own do.
STRICT = (
    "{%- for m in messages -%}{%- if m['role'] not in ('user', 'assistant') or "
    "(m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}"
    "<{{ m['role'] }}>{{ m['content'] }}{%- endfor -%}{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)
LONG = "Read this first. " * 40


@pytest.fixture
def large() -> Iterator[FakeEngine]:
    engine = FakeEngine(GEMMA3, "large")
    yield engine
    engine.close()


@pytest.fixture
def small() -> Iterator[FakeEngine]:
    engine = FakeEngine(SMOLLM2, "small")
    yield engine
    engine.close()


def settings(**changes: Any) -> CollabSettings:
    return CollabSettings(**{"warm_up_steps": 1, "check": Check.VERDICT, "max_steps": None, **changes})


def backend(large: FakeEngine, small: FakeEngine, **changes: Any) -> CollabBackend:
    return CollabBackend(large.url, small.url, settings(**changes))


def until(is_so: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline, f"not within 5 s: {what}"
        time.sleep(0.002)


def error_of(run: Callable[[], Any]) -> Exception | None:
    """What a program ends with; the interpreter warns of it, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error: Exception | None = run().error()
        return error


def verdicts_are_in(state: Any) -> None:
    """Waits as a tool would for the check of the last step."""
    state.sync()
    check = branch_of(state.stream_executor).check
    assert check is not None
    assert check.done.wait(5)


@sgl.function
def three_steps(s: Any, question: str) -> None:
    s += sgl.system("Be brief.")
    s += sgl.user(question)
    for number in range(3):
        s += sgl.assistant(sgl.gen(f"step_{number}"))
        verdicts_are_in(s)
        s += sgl.user(f"result {number}")


@sgl.function
def two_steps(s: Any) -> None:
    for text in ("Go.", "on"):
        s += sgl.user(text)
        s += sgl.assistant(sgl.gen(text))


def told(system: str | None, *turns: str) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    return messages + [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(turns)
    ]


def test_each_model_is_sent_the_conversation_in_its_own_format(large: FakeEngine, small: FakeEngine) -> None:
    state = three_steps.run(question="Why?", backend=backend(large, small))
    state.sync()
    first = told("Be brief.", "Why?")
    second = [*first, *told(None, "result 0", "")[:1]]
    second.insert(2, {"role": "assistant", "content": "reply of large"})
    third = [*second, {"role": "assistant", "content": "reply of small"}, {"role": "user", "content": "result 1"}]
    assert large.prompts() == [render(GEMMA3, first, add_generation_prompt=True)]
    assert small.prompts() == [render(SMOLLM2, each, add_generation_prompt=True) for each in (second, third)]
    # What the program sees of itself is as upstream shows it, in the frontend language's own format.
    assert state.text().startswith("SYSTEM:Be brief.\nUSER:Why?\nASSISTANT:reply of large\nUSER:result 0\n")
    assert state.messages()[2] == {"role": "assistant", "content": "reply of large"}


def test_requests_carry_session_and_turn(large: FakeEngine, small: FakeEngine) -> None:
    three_steps.run(question="Why?", backend=backend(large, small)).sync()
    bodies = [*large.turns(), *small.turns()]
    (session,) = {body["session_id"] for body in bodies}
    assert [body["agentinfer"] for body in bodies] == [{"session": session, "turn": turn} for turn in range(3)]


def test_the_small_model_is_relieved_where_its_check_says_no_progress(large: FakeEngine, small: FakeEngine) -> None:
    small.p_true = 0.2
    state = three_steps.run(question="Why?", backend=backend(large, small))
    trail = collab_trail(state, wait_s=5)
    assert [(str(step.model), step.reason, step.next_reason) for step in trail] == [
        ("large", "opening", "warm_up_done"),
        ("small", "warm_up_done", "no_progress"),
        ("large", "no_progress", None),
    ]
    assert [step.verdict for step in trail] == [Verdict.PROGRESS, Verdict.NO_PROGRESS, Verdict.PROGRESS]
    assert trail[1].p_true == pytest.approx(0.2)
    assert state.get_meta_info("step_1")["agentinfer"] == {"model": "small", "step": 1, "reason": "warm_up_done"}


def test_the_block_gives_its_reason_and_the_words_their_probability(large: FakeEngine, small: FakeEngine) -> None:
    large.p_true = 0.7
    state = three_steps.run(question="Why?", backend=backend(large, small, check=Check.BLOCK))
    step = collab_trail(state, wait_s=5)[0]
    assert step.p_true == pytest.approx(0.7)
    assert step.why == "it did one two three four five six seven eight nine"
    assert large.checks()[0].endswith("eight nine </reason>\n<value>TRUE")


def test_an_engine_that_shows_no_tokens_is_judged_by_the_word_it_writes(large: FakeEngine, small: FakeEngine) -> None:
    small.routes.remove("/tokenize")
    state = three_steps.run(question="Why?", backend=backend(large, small))
    step = collab_trail(state, wait_s=5)[1]
    assert (step.verdict, step.p_true) == (Verdict.NO_PROGRESS, None)


def test_the_check_asks_the_speaker_about_its_own_words(large: FakeEngine, small: FakeEngine) -> None:
    three_steps.run(question="Why?", backend=backend(large, small)).sync()
    assert "reply of large" in large.checks()[0]
    assert "reply of small" in small.checks()[0]
    # All that came before the question is what the speaker had: it is in its cache.
    assert large.checks()[0].startswith(large.prompts()[0] + "reply of large")


def test_a_late_verdict_changes_nothing_in_the_step_that_began_and_counts_after_it(
    large: FakeEngine, small: FakeEngine
) -> None:
    small.p_true = 0.1
    small.may_check.clear()

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Go.")
        for number in range(4):
            s += sgl.assistant(sgl.gen(f"step_{number}"))
            s.sync()
            if number == 2:
                small.may_check.set()
                verdicts_are_in(s)
            s += sgl.user("on")

    state = program.run(backend=backend(large, small))
    trail = collab_trail(state)
    assert [str(step.model) for step in trail] == ["large", "small", "small", "large"]
    assert [step.verdict for step in trail[1:3]] == [Verdict.MISSING, Verdict.NO_PROGRESS]


def test_a_second_gen_in_a_message_stays_and_the_whole_message_is_judged_once(
    large: FakeEngine, small: FakeEngine
) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Go.")
        s += sgl.assistant("Thought: " + sgl.gen("thought") + "\nAction: " + sgl.gen("action"))
        verdicts_are_in(s)

    state = program.run(backend=backend(large, small))
    state.sync()
    start = render(GEMMA3, told(None, "Go."), add_generation_prompt=True)
    assert large.prompts() == [start + "Thought: ", start + "Thought: reply of large\nAction: "]
    assert small.prompts() == []
    (judged,) = large.checks()
    assert "Thought: reply of large\nAction: reply of large\n\n\n\nUser:\nBefore" in judged
    assert len(collab_trail(state)) == 1


def test_a_check_that_began_before_the_message_went_on_is_discarded(large: FakeEngine, small: FakeEngine) -> None:
    large.may_check.clear()

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Go.")
        with s.assistant():
            s += sgl.gen("first")
            s.sync()
            until(lambda: large.checks(), "a check of the message that is still open")
            large.p_true = 0.3
            s += sgl.gen("second")
            s.sync()
        until(lambda: len(large.checks()) == 2, "a check of the whole message")
        large.may_check.set()
        verdicts_are_in(s)

    state = program.run(backend=backend(large, small))
    (step,) = collab_trail(state)
    assert step.p_true == pytest.approx(0.3)
    assert "reply of largereply of large" in large.checks()[1]


def test_a_verdict_that_was_there_before_the_message_went_on_is_withdrawn(large: FakeEngine, small: FakeEngine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Go.")
        with s.assistant():
            s += sgl.gen("first")
            verdicts_are_in(s)
            s["before"] = collab_trail(s)[0].verdict
            large.may_check.clear()
            s += sgl.gen("second")
        s += sgl.user("on")
        s += sgl.assistant(sgl.gen("third"))

    state = program.run(backend=backend(large, small))
    trail = collab_trail(state)
    large.may_check.set()
    assert state["before"] is Verdict.PROGRESS
    assert trail[0].verdict is Verdict.MISSING


def test_what_forks_share_is_computed_on_the_model_that_goes_on(large: FakeEngine, small: FakeEngine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Go.")
        s += sgl.assistant(sgl.gen("plan"))
        s.sync()
        s.fork(2).join()

    program.run(backend=backend(large, small, check=Check.OFF)).sync()
    empty = [body for body in small.sent("/generate") if body["sampling_params"]["max_new_tokens"] == 0]
    assert "reply of large" in "".join(map(chr, empty[0]["input_ids"]))
    assert not [body for body in large.sent("/generate") if body["sampling_params"]["max_new_tokens"] == 0]


def test_forks_go_on_from_their_parents_trajectory_each_by_itself(large: FakeEngine, small: FakeEngine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Go.")
        s += sgl.assistant(sgl.gen("plan"))
        verdicts_are_in(s)
        forks = s.fork(2)
        small.p_true = 0.1
        for fork in forks:
            fork += sgl.user("yours")
            fork += sgl.assistant(sgl.gen("one"))
            verdicts_are_in(fork)
            fork += sgl.user("and")
            fork += sgl.assistant(sgl.gen("two"))
            verdicts_are_in(fork)
        s["trails"] = [[str(step.model) for step in collab_trail(fork)] for fork in forks]
        forks.join()
        small.p_true = 0.9
        s += sgl.user("Sum up.")
        s += sgl.assistant(sgl.gen("end"))

    state = program.run(backend=backend(large, small))
    state.sync()
    assert state["trails"] == [["small", "large"], ["small", "large"]]
    assert [str(step.model) for step in collab_trail(state)] == ["large", "small"]
    assert state["one"] == ["reply of small"] * 2
    sessions = {body["agentinfer"]["session"]: body["agentinfer"].get("parent") for body in small.turns()}
    root = branch_of(state.stream_executor).session
    assert sessions == {f"{root}.1": root, f"{root}.2": root, root: None}
    assert small.prompts()[-1] == render(
        SMOLLM2, told(None, "Go.", "reply of large", "Sum up."), add_generation_prompt=True
    )


def test_a_verdict_that_comes_after_the_fork_counts_in_the_forks(large: FakeEngine, small: FakeEngine) -> None:
    small.p_true = 0.1
    small.may_check.clear()

    @sgl.function
    def program(s: Any) -> None:
        for text in ("Go.", "on"):
            s += sgl.user(text)
            s += sgl.assistant(sgl.gen(text))
        s.sync()
        (fork,) = s.fork(1)
        # Seen by the backend before the verdict comes, as a fork whose message has begun.
        branch_of(fork.stream_executor)
        small.may_check.set()
        verdicts_are_in(s)
        fork += sgl.user("yours")
        fork += sgl.assistant(sgl.gen("one"))
        s["model"] = fork.get_meta_info("one")["agentinfer"]["model"]

    state = program.run(backend=backend(large, small))
    assert state["model"] == "large"


def test_joined_text_brings_its_messages(large: FakeEngine, small: FakeEngine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Go.")
        s += sgl.assistant(sgl.gen("plan"))
        forks = s.fork(2)
        for number, fork in enumerate(forks):
            fork += sgl.user(f"part {number}")
            fork += sgl.assistant(sgl.gen("part"))
        forks.join("concate_and_append")
        s += sgl.user("Sum up.")
        s += sgl.assistant(sgl.gen("end"))

    program.run(backend=backend(large, small, check=Check.OFF)).sync()
    whole = told(None, "Go.", "reply of large", "part 0", "reply of small", "part 1", "reply of small", "Sum up.")
    assert small.prompts()[-1] == render(SMOLLM2, whole, add_generation_prompt=True)


def test_joined_text_of_forks_made_at_the_very_beginning_is_not_lost(large: FakeEngine, small: FakeEngine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        forks = s.fork(2)
        for number, fork in enumerate(forks):
            fork += sgl.user(f"part {number}")
            fork += sgl.assistant(sgl.gen("part"))
        forks.join("concate_and_append")
        s += sgl.user("Sum up.")
        s += sgl.assistant(sgl.gen("end"))

    program.run(backend=backend(large, small, check=Check.OFF, warm_up_steps=2)).sync()
    whole = told(None, "part 0", "reply of large", "part 1", "reply of large", "Sum up.")
    assert large.prompts()[-1] == render(GEMMA3, whole, add_generation_prompt=True)


def test_runs_with_the_same_arguments_are_runs_of_their_own(large: FakeEngine, small: FakeEngine) -> None:
    arguments = {"question": "Why?"}
    states = three_steps.run_batch([arguments, arguments, arguments], backend=backend(large, small))
    trails = [[str(step.model) for step in collab_trail(state)] for state in states]
    assert trails == [["large", "small", "small"]] * 3
    assert len({body["session_id"] for body in large.turns()}) == 3


def test_nothing_is_kept_of_a_program_that_is_gone(large: FakeEngine, small: FakeEngine) -> None:
    both = backend(large, small)
    state = three_steps.run(question="Why?", backend=both)
    verdicts_are_in(state)
    branch = weakref.ref(branch_of(state.stream_executor))
    del state
    until(lambda: gc.collect() >= 0 and branch() is None, "the run's state is freed")
    assert len(both._joins) == 0


def test_text_without_messages_is_passed_as_it_is_a_step_each_gen(large: FakeEngine, small: FakeEngine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Q: 1+1\nA:" + sgl.gen("one", stop="\n")
        verdicts_are_in(s)
        s += "\nQ: 2+2\nA:" + sgl.gen("two", stop="\n")
        verdicts_are_in(s)

    state = program.run(backend=backend(large, small))
    state.sync()
    assert large.turns()[0]["text"] == "Q: 1+1\nA:"
    assert small.turns()[0]["text"] == "Q: 1+1\nA:reply of large\nQ: 2+2\nA:"
    assert small.turns()[0]["sampling_params"]["stop"] == ["\n"] or small.turns()[0]["sampling_params"]["stop"] == "\n"
    assert large.checks()[0].startswith("Q: 1+1\nA:reply of large\n\nBefore anything else")
    assert [step.verdict for step in collab_trail(state)] == [Verdict.PROGRESS] * 2


def test_select_is_answered_by_whoever_has_the_message(large: FakeEngine, small: FakeEngine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Go.")
        s += sgl.assistant(sgl.select("word", ["no", "yes TRUE"]))

    large.p_true = 0.999
    state = program.run(backend=backend(large, small, check=Check.OFF))
    assert state["word"] in ("no", "yes TRUE")
    assert state.get_meta_info("word")["agentinfer"]["model"] == "large"
    scored = next(body for body in large.sent("/generate") if isinstance(body["input_ids"][0], list))
    start = render(GEMMA3, told(None, "Go."), add_generation_prompt=True)
    assert ["".join(map(chr, ids)) for ids in scored["input_ids"]] == [start + "no", start + "yes TRUE"]


def test_a_stream_arrives_in_pieces_and_is_a_step(large: FakeEngine, small: FakeEngine) -> None:
    state = three_steps.run(question="Why?", backend=backend(large, small), stream=True)
    pieces = list(state.text_iter("step_0"))
    assert "".join(pieces) == "reply of large"
    assert ["".join(state.text_iter(name)) for name in ("step_1", "step_2")] == ["reply of small"] * 2
    assert [str(step.model) for step in collab_trail(state)] == ["large", "small", "small"]


# Faults.


@pytest.mark.parametrize("status", [0, 500, 400], ids=["no answer", "broken", "refuses"])
def test_the_other_model_takes_the_step_of_an_engine_that_fails(
    large: FakeEngine, small: FakeEngine, status: int
) -> None:
    both = backend(large, small)
    both.get_chat_template()
    large.status = status
    state = three_steps.run(question="Why?", backend=both)
    trail = collab_trail(state)
    assert state["step_0"] == "reply of small"
    assert [(str(step.model), step.reason) for step in trail[:2]] == [
        ("small", "model_unavailable"),
        ("small", "warm_up_done"),
    ]


def test_an_engine_that_was_never_there_is_no_reason_not_to_start(small: FakeEngine) -> None:
    both = CollabBackend("http://127.0.0.1:9", small.url, settings())
    state = three_steps.run(question="Why?", backend=both)
    assert state["step_2"] == "reply of small"
    assert collab_trail(state)[0].reason == "model_unavailable"


def test_an_engine_that_did_not_answer_is_left_alone_for_a_while(large: FakeEngine, small: FakeEngine) -> None:
    clock = ManualClock()
    both = CollabBackend(large.url, small.url, settings(), clock)
    both.get_chat_template()
    large.status = 0
    three_steps.run(question="Why?", backend=both).sync()
    seen = len(large.requests)
    three_steps.run(question="Why?", backend=both).sync()
    assert len(large.requests) == seen
    large.status = 200
    clock.advance(6)
    assert three_steps.run(question="Why?", backend=both)["step_0"] == "reply of large"


def test_without_any_engine_the_program_says_which_two_failed(large: FakeEngine, small: FakeEngine) -> None:
    both = backend(large, small)
    both.get_chat_template()
    large.status = small.status = 0
    error = error_of(lambda: two_steps.run(backend=both))
    assert isinstance(error, CollabError)
    assert large.url in str(error)
    assert small.url in str(error)


def test_a_stream_that_breaks_off_is_finished_by_the_other_model(large: FakeEngine, small: FakeEngine) -> None:
    large.cut_after = 5
    small.reply = lambda prompt: " and the rest" if prompt.endswith("reply") else "?"

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Go.")
        s += sgl.assistant(sgl.gen("text", max_tokens=30))

    state = program.run(backend=backend(large, small, check=Check.OFF), stream=True)
    assert "".join(state.text_iter("text")) == "reply and the rest"
    assert small.turns()[0]["sampling_params"]["max_new_tokens"] == 25
    assert collab_trail(state)[0].reason == "model_unavailable"


def test_a_check_that_fails_is_no_verdict_and_no_error(large: FakeEngine, small: FakeEngine) -> None:
    both = backend(large, small)

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Go.")
        s += sgl.assistant(sgl.gen("one"))
        s.sync()
        large.may_check.set()
        verdicts_are_in(s)
        s += sgl.user("on")
        s += sgl.assistant(sgl.gen("two"))

    answer = large.answer

    def failing(path: str, body: dict[str, Any]) -> Any:
        if path == "/generate" and isinstance(body.get("input_ids", [0])[0], list):
            return ["no", "scores"]
        return answer(path, body)

    large.answer = failing  # type: ignore[method-assign]
    state = program.run(backend=both)
    state.sync()
    assert state.error() is None
    assert collab_trail(state)[0].verdict is Verdict.MISSING


# Hand-over.


def with_a_tool_until_prefilled(standby: FakeEngine) -> Any:
    """Two steps; the tool between them takes until `standby` is asked to prefill."""

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(LONG)
        s += sgl.assistant(sgl.gen("one"))
        s.sync()
        until(lambda: standby.sent("/agentinfer/prefill"), f"a prefill on {standby.name}")
        s += sgl.user("on")
        s += sgl.assistant(sgl.gen("two"))

    return program


def test_the_silent_model_prefills_what_it_has_not_seen_while_the_tool_runs(
    large: FakeEngine, small: FakeEngine
) -> None:
    with_a_tool_until_prefilled(small).run(backend=backend(large, small)).sync()
    (wish,) = small.sent("/agentinfer/prefill")
    ahead = "".join(map(chr, wish["input_ids"]))
    assert small.prompts()[0].startswith(ahead)
    assert "reply of large" in ahead
    assert wish["agentinfer"] == {"session": small.turns()[0]["session_id"]}


def test_stock_sglang_computes_it_by_an_empty_generation(large: FakeEngine, small: FakeEngine) -> None:
    small.routes.remove("/agentinfer/prefill")

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(LONG)
        s += sgl.assistant(sgl.gen("one"))
        s.sync()
        until(lambda: small.sent("/generate"), "an empty generation on the small model")

    program.run(backend=backend(large, small)).sync()
    (body,) = small.sent("/generate")
    assert body["sampling_params"]["max_new_tokens"] == 0
    assert "reply of large" in "".join(map(chr, body["input_ids"]))


def test_an_engine_that_has_no_room_for_a_prefill_is_not_taken_for_dead(large: FakeEngine, small: FakeEngine) -> None:
    small.busy.add("/agentinfer/prefill")
    small.p_true = 0.9
    state = with_a_tool_until_prefilled(small).run(backend=backend(large, small))
    state.sync()
    assert [step.model for step in collab_trail(state)] == ["large", "small"]


def test_an_engine_that_is_busy_with_its_prompts_is_not_given_guessed_ones(
    large: FakeEngine, small: FakeEngine
) -> None:
    """A gateway says so of any route; taken for the engine's own word, its chat template would be given up for good."""
    large.busy.add("/tokenize")

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Why?")
        s += sgl.assistant(sgl.gen("one"))

    state = program.run(backend=backend(large, small))
    state.sync()
    assert [step.model for step in collab_trail(state)] == ["small"]
    assert large.turns() == []


def test_a_verdict_that_calls_the_large_model_warms_it_at_once(large: FakeEngine, small: FakeEngine) -> None:
    small.p_true = 0.1
    both = backend(large, small)
    # Escalations have been so rare that the chance alone is not worth a prefill.
    both._rate.kept = 10_000.0
    large.reply = small.reply = lambda prompt: LONG

    @sgl.function
    def program(s: Any) -> None:
        for number in range(2):
            s += sgl.user(LONG)
            s += sgl.assistant(sgl.gen(f"step_{number}"))
            verdicts_are_in(s)
        until(lambda: large.sent("/agentinfer/prefill"), "a prefill on the large model")

    program.run(backend=both).sync()
    (wish,) = large.sent("/agentinfer/prefill")
    assert "".join(map(chr, wish["input_ids"])).count(LONG.strip()) == 4


# Formats that models insist on.


def test_a_template_that_knows_only_turns_gets_turns(large: FakeEngine, small: FakeEngine) -> None:
    large.template = STRICT
    answer = large.answer

    def refusing(path: str, body: dict[str, Any]) -> Any:
        try:
            return answer(path, body)
        except Exception:
            return {"object": "error", "message": "roles must alternate"}

    large.answer = refusing  # type: ignore[method-assign]
    three_steps.run(question="Why?", backend=backend(large, small, warm_up_steps=2)).sync()
    assert large.prompts() == [
        "<user>Be brief.\n\nWhy?<assistant>",
        "<user>Be brief.\n\nWhy?<assistant>reply of large<user>result 0<assistant>",
    ]


def test_an_engine_that_renders_nothing_is_sent_a_guess_and_says_so(
    large: FakeEngine, small: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    large.routes.remove("/tokenize")
    three_steps.run(question="Why?", backend=backend(large, small)).sync()
    assert large.turns()[0]["text"] == "SYSTEM:Be brief.\nUSER:Why?\nASSISTANT:"
    assert "guessed from the model's name" in caplog.text


def test_a_message_of_the_user_that_a_model_writes_is_in_its_format(large: FakeEngine, small: FakeEngine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.system("Play a user.")
        s += sgl.user("I " + sgl.gen("wish"))

    program.run(backend=backend(large, small, check=Check.OFF)).sync()
    whole = render(GEMMA3, [*told("Play a user."), {"role": "user", "content": "I "}])
    assert large.prompts() == [whole.removesuffix("\n\n\n\n")]


def test_text_between_messages_is_reported(
    large: FakeEngine, small: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "lost words "
        s += sgl.user("Go.")
        s += sgl.assistant(sgl.gen("one"))

    program.run(backend=backend(large, small, check=Check.OFF)).sync()
    assert "text outside of messages" in caplog.text
    caplog.clear()
    three_steps.run(question="Why?", backend=backend(large, small)).sync()
    assert "text outside of messages" not in caplog.text


# Ways to start a program.


def test_a_decorated_program_takes_its_engines_where_it_runs(large: FakeEngine, small: FakeEngine) -> None:
    program = collab(settings(warm_up_steps=2))(three_steps.func)
    state = program.run(question="Why?", large=RuntimeEndpoint(large.url), small=small.url)
    assert [str(step.model) for step in collab_trail(state)] == ["large", "large", "small"]
    states = program.bind(question="Why?").run_batch([{}, {}], large=large.url, small=small.url)
    assert [state["step_2"] for state in states] == ["reply of small"] * 2


def test_a_decorated_program_takes_the_default_backend_with_its_own_settings(
    large: FakeEngine, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang.lang.global_config.global_config.default_backend", backend(large, small))
    program = collab(warm_up_steps=0, check=Check.OFF)(two_steps.func)
    assert [str(step.model) for step in collab_trail(program.run())] == ["small", "small"]


def test_a_decorated_program_needs_two_models(large: FakeEngine) -> None:
    program = collab(three_steps.func)
    with pytest.raises(CollabError, match="expected both or neither"):
        program.run(question="Why?", large=large.url)
    with pytest.raises(CollabError, match="expected two models"):
        program.run(question="Why?", backend=RuntimeEndpoint(large.url))


def test_steps_are_limited_where_a_limit_is_set(large: FakeEngine, small: FakeEngine) -> None:
    program = collab(settings(max_steps=1))(two_steps.func)
    error = error_of(lambda: program.run(large=large.url, small=small.url))
    assert isinstance(error, CollabError)
    assert "max_steps is 1" in str(error)


def test_a_failed_gen_is_the_error_that_a_decorated_program_raises(large: FakeEngine, small: FakeEngine) -> None:
    @collab(check=Check.OFF)
    def program(s: Any) -> str:
        s += sgl.user("Go.")
        s += sgl.assistant(sgl.gen("text"))
        return str(s["text"])

    both = backend(large, small, check=Check.OFF)
    both.get_chat_template()
    large.status = small.status = 500
    with pytest.warns(UserWarning, match="Error in stream_executor"), pytest.raises(CollabError, match="neither model"):
        program.run(backend=both)


def test_images_are_refused(large: FakeEngine, small: FakeEngine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(sgl.image(b"not read"))
        s += sgl.assistant(sgl.gen("text"))

    error = error_of(lambda: program.run(backend=backend(large, small)))
    assert "two models do not share" in str(error)


def test_many_programs_at_a_time_keep_to_themselves(large: FakeEngine, small: FakeEngine) -> None:
    barrier = threading.Barrier(8)

    @sgl.function
    def program(s: Any, number: int) -> None:
        s += sgl.user(f"number {number}")
        s += sgl.assistant(sgl.gen("one"))
        barrier.wait(5)
        s += sgl.user("on")
        s += sgl.assistant(sgl.gen("two"))

    states = program.run_batch([{"number": number} for number in range(8)], backend=backend(large, small))
    for state in states:
        state.sync()
    own = sorted(prompt.split("number ")[1][0] for prompt in small.prompts())
    assert own == [str(number) for number in range(8)]
