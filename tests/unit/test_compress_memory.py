"""Memory as steps, what a plan takes, and what a composed context looks like."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agentinfer.compress.composition import compose
from agentinfer.compress.memory import parse_observation_id, split
from agentinfer.compress.note import Line, Note, note_schema
from agentinfer.compress.plan import Plan, is_worth_it, make_plan
from agentinfer.compress.sizes import Sizes
from tests.agent_sessions import SYSTEM, assistant, call, chat, tool, user
from tests.compress_builders import SMALL, TASK, assert_nothing_lost, history, messages_of, note_for, step

LONG = "a line of output\n" * 30


def same(number: int) -> list[dict]:
    return step(number, LONG, "write")


def plan_of(bodies, settings=SMALL, **more) -> Plan | None:
    return make_plan(messages_of(bodies), Sizes(), settings, **more)


def test_steps_are_calls_with_their_results():
    bodies = [SYSTEM, TASK, *step(0), *step(1), assistant("Done."), user("Thanks."), *step(2)]
    steps = split(messages_of(bodies))
    assert [(each.start, each.end, each.is_closed) for each in steps] == [(2, 4, True), (4, 6, True), (8, 10, True)]
    assert steps[1].observations[0].id == "o5"
    assert steps[1].observations[0].tool == "bash"
    assert json.loads(steps[1].observations[0].arguments_text) == {"n": 1}


@pytest.mark.parametrize("bodies", [[TASK], [SYSTEM, TASK, assistant("Done.")]], ids=["task", "no tools"])
def test_a_history_without_tools_has_no_steps_and_no_plan(bodies):
    assert split(messages_of(bodies)) == ()
    assert plan_of(bodies) is None


def test_results_in_any_order_belong_to_their_calls():
    bodies = [TASK, assistant("", call("a", "read"), call("b", "grep")), tool("b", "found"), tool("a", "text")]
    (only,) = split(messages_of(bodies))
    assert only.is_closed
    assert [(each.tool, each.text) for each in only.observations] == [("grep", "found"), ("read", "text")]


@pytest.mark.parametrize(
    ("results", "is_closed"),
    [
        pytest.param([tool("a", "x")], False, id="one missing"),
        pytest.param([tool("a", "x"), tool("a", "x")], False, id="one answered twice"),
        pytest.param([tool("a", "x"), tool("b", "y")], True, id="both"),
    ],
)
def test_a_step_is_closed_when_each_call_has_its_result(results, is_closed):
    bodies = [TASK, assistant("", call("a"), call("b")), *results]
    assert split(messages_of(bodies))[0].is_closed is is_closed


def test_a_loop_of_several_tools_ends_before_its_first_tool_comes_again():
    names = ["search", "crawl", "ask", "search", "crawl", "ask", "search"]
    bodies = [TASK, *(message for number, name in enumerate(names) for message in step(number, "x", name))]
    assert [each.ends_loop for each in split(messages_of(bodies))] == [False, False, True, False, False, True, True]


def test_a_loop_without_an_order_ends_after_some_steps():
    names = ["plan", *["bash"] * 20]
    bodies = [TASK, *(message for number, name in enumerate(names) for message in step(number, "x", name))]
    ends = [each.ends_loop for each in split(messages_of(bodies))]
    assert ends == [False] * 7 + [True] * 14


def test_a_result_that_is_more_than_text_is_no_observation():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    result = {"role": "tool", "tool_call_id": "c0", "content": [{"type": "text", "text": LONG}, image]}
    bodies = [TASK, assistant("", call("c0")), result, *step(1), *step(2)]
    plan = plan_of(bodies)
    assert [each.index for each in plan.taken] == [4]


def test_recent_steps_and_short_results_stay():
    bodies = [TASK, *step(0, "ok"), *step(1, LONG), *step(2, LONG), *step(3, LONG)]
    plan = plan_of(bodies, replace(SMALL, keep_recent_steps=2))
    assert [each.index for each in plan.taken] == [4]
    assert plan.covers == 5


def test_nothing_is_taken_from_the_middle_of_a_loop():
    names = ["search", "crawl", "ask", "search", "crawl"]
    bodies = [TASK, *(message for number, name in enumerate(names) for message in step(number, LONG, name))]
    plan = plan_of(bodies)
    assert [each.tool for each in plan.taken] == ["search", "crawl", "ask"]


def test_nothing_is_taken_behind_a_call_without_its_result():
    bodies = [
        TASK,
        *step(0, LONG),
        assistant("", call("x"), call("y")),
        tool("x", LONG),
        *step(2, LONG),
        *step(3, LONG),
    ]
    assert [each.index for each in plan_of(bodies).taken] == [2]


def test_sizes_of_a_plan_add_up():
    bodies = history(8)
    messages = messages_of(bodies)
    sizes = Sizes()
    plan = plan_of(bodies)
    note = Note((Line("x" * round(plan.note_tokens / sizes.tokens_per_char), plan.taken[0].index),))
    composed = compose(messages, plan, note, None, SMALL)
    before, after = sizes.messages(messages), sizes.messages(chat(*composed.applied(bodies)).messages)
    assert plan.prompt_tokens == before
    # The note's heading is not planned for.
    assert abs((before - after) - plan.saved_tokens) < 0.1 * before
    unchanged = sizes.messages(messages[: plan.taken[0].index])
    assert plan.recomputed_tokens == plan.prompt_tokens - plan.saved_tokens - unchanged


def test_a_job_is_worth_it_over_the_threshold_and_from_a_share_of_the_prompt_on():
    plan = Plan(covers=5, taken=(), note_tokens=10, prompt_tokens=1000, saved_tokens=99, recomputed_tokens=500)
    settings = replace(SMALL, threshold_tokens=1000, min_saving_share=0.1)
    assert not is_worth_it(plan, settings)
    assert is_worth_it(replace(plan, saved_tokens=100), settings)
    assert is_worth_it(plan, settings, kv_price=1.0), "a full cache makes smaller savings worth it"
    assert not is_worth_it(replace(plan, saved_tokens=100), replace(settings, threshold_tokens=1001))


def test_composed_context_keeps_all_but_what_it_took():
    bodies = history(6)
    plan = plan_of(bodies)
    composition = compose(messages_of(bodies), plan, note_for(plan.taken), None, SMALL)
    sent = composition.applied(bodies)
    assert_nothing_lost(bodies, sent, composition)
    assert sent[plan.covers] == {"role": "assistant", "content": composition.notes[0].text()}
    assert all(ours is theirs for ours, theirs in zip(sent[plan.covers + 1 :], bodies[plan.covers :], strict=True))


def test_a_note_that_is_no_step_goes_behind_the_last_result():
    bodies = history(6)
    plan = plan_of(bodies)
    settings = replace(SMALL, note_is_step=False)
    composition = compose(messages_of(bodies), plan, note_for(plan.taken), None, settings)
    sent = composition.applied(bodies)
    assert len(sent) == len(bodies)
    assert sent[plan.covers - 1]["content"] == f"[o{plan.covers - 1}]\n\n{composition.notes[0].text()}"


def test_a_second_composition_leaves_the_first_as_it_was():
    bodies = history(10)
    messages = messages_of(bodies)
    first_plan = make_plan(messages[:10], Sizes(), SMALL)
    first = compose(messages, first_plan, note_for(first_plan.taken), None, SMALL)
    plan = make_plan(messages, Sizes(), SMALL, already_taken=first.taken, covered=first.covers)
    second = compose(messages, plan, note_for(plan.taken), first, SMALL)
    assert second.messages[: len(first.messages)] == first.messages
    assert second.taken.keys() == first.taken.keys() | {each.index for each in plan.taken}
    assert len(second.notes) == 2
    assert_nothing_lost(bodies, second.applied(bodies), second)


def test_payloads_of_old_calls_are_cut_only_when_asked_for():
    script = "print('x')\n" * 100
    bodies = [TASK, *step(0, "ok", "write", path="a.py", text=script, times=3), *same(1), *same(2), *same(3)]
    assert [each.index for each in plan_of(bodies).taken] == [4, 6]
    settings = replace(SMALL, take_payloads=True)
    plan = plan_of(bodies, settings)
    assert [each.index for each in plan.taken] == [1, 4, 6]
    composition = compose(messages_of(bodies), plan, note_for(plan.taken), None, settings)
    (written,) = composition.applied(bodies)[1]["tool_calls"]
    arguments = json.loads(written["function"]["arguments"])
    assert {**arguments, "text": ""} == {"path": "a.py", "text": "", "times": 3}
    assert arguments["text"].startswith(script[:160])
    assert arguments["text"].endswith("[o1: 940 more characters were taken out]")
    assert json.loads(composition.taken[1].text)["text"] == script
    assert bodies[1]["tool_calls"][0]["function"]["arguments"] == json.dumps(
        {"path": "a.py", "text": script, "times": 3}
    )


@pytest.mark.parametrize("arguments", ["not json " * 100, json.dumps(["x" * 900]), json.dumps("x" * 900)])
def test_arguments_that_are_no_object_stay(arguments):
    odd = {"id": "c", "type": "function", "function": {"name": "write", "arguments": arguments}}
    bodies = [TASK, assistant("", odd), tool("c", LONG), *same(1), *same(2)]
    settings = replace(SMALL, take_payloads=True)
    plan = plan_of(bodies, settings)
    assert 1 not in {each.index for each in plan.taken}


def test_sizes_learn_from_what_the_engine_counted():
    messages = messages_of(history(5))
    sizes = Sizes()
    sizes.observe(messages, 2 * sizes.messages(messages))
    counted = sizes.messages(messages)
    assert counted == pytest.approx(2 * Sizes().messages(messages), rel=0.02)


def test_note_comes_back_from_json_and_is_ordered_by_source():
    note = Note.from_json(
        {"facts": [{"source": "o9", "text": "b"}, {"source": "o3", "text": " a  a "}], "next_step": "go"}
    )
    assert note.facts == (Line("a a", 3), Line("b", 9))
    assert Note.from_json(note.to_json()) == note
    assert note.text().splitlines()[1:] == ["[o3] a a", "[o9] b", "Next: go"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param([], "expected an object", id="a list"),
        pytest.param({"fact": []}, "unknown field 'fact'", id="a typo"),
        pytest.param({"facts": ["x"]}, r"note.facts\[0\]", id="a bare text"),
        pytest.param({"facts": [{"source": "12", "text": "x"}]}, "observation id", id="no id"),
        pytest.param({"next_step": 3}, "note.next_step", id="no text"),
    ],
)
def test_malformed_notes_are_refused_by_name(data, says):
    with pytest.raises(ValueError, match=says):
        Note.from_json(data)


def test_schema_lets_a_line_name_only_the_observations_there_are():
    lines = note_schema(["o3", "o5"])["properties"]["facts"]["items"]
    assert lines["properties"]["source"]["enum"] == ["o3", "o5"]


@pytest.mark.parametrize("text", ["12", "o", "o-1", "oo1", "o1x", "p3"])
def test_malformed_observation_ids_are_refused(text):
    with pytest.raises(ValueError, match="as in o12"):
        parse_observation_id(text)
