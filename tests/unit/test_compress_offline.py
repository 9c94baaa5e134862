"""A recorded session through the job machine: when jobs start and swap, and what is sent meanwhile."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from agentinfer.compress.distiller import Assignment
from agentinfer.compress.note import Line, Note
from agentinfer.compress.offline import Exchange, TurnOutcome, compress_session
from agentinfer.compress.settings import Settings

SETTINGS = Settings(threshold_tokens=500, keep_recent_steps=1, warm_share=0.7)


def session(num_steps: int, result_chars: int = 1500, secret: str = "port 8417") -> list[Exchange]:
    """Each step reads a file; the first result says the secret."""
    history: list[dict[str, Any]] = [
        {"role": "system", "content": "You are an agent."},
        {"role": "user", "content": "Find the port."},
    ]
    exchanges = []
    for step in range(num_steps):
        function = {"name": "read", "arguments": json.dumps({"path": f"f{step}.txt"})}
        reply = {
            "role": "assistant",
            "content": f"I read f{step}.txt.",
            "tool_calls": [{"id": f"c{step}", "type": "function", "function": function}],
        }
        exchanges.append(Exchange(tuple(history), reply))
        text = f"{secret if step == 0 else step} " + "words " * (result_chars // 6)
        history = [*history, reply, {"role": "tool", "tool_call_id": f"c{step}", "content": text}]
    return [*exchanges, Exchange(tuple(history), {"role": "assistant", "content": "It is 8417."})]


def first_words(assignment: Assignment) -> Note:
    return Note(tuple(Line(each.text[:30], each.index) for each in assignment.observations))


def swaps(outcomes: tuple[TurnOutcome, ...]) -> list[int]:
    return [each.index for each in outcomes if each.is_swap]


def test_a_note_takes_the_turns_it_is_given_and_the_next_turn_swaps() -> None:
    for note_turns in (0, 1, 3):
        outcomes = compress_session(session(12), first_words, SETTINGS, note_turns)
        started = next(each.index for each in outcomes if each.started is not None)
        noted = next(each.index for each in outcomes if each.note is not None)
        assert noted == started + note_turns
        assert swaps(outcomes)[0] > noted
        assert all(each.sent == each.prompt for each in outcomes[: swaps(outcomes)[0]]), "the old context until then"


def test_every_message_of_the_client_is_sent_shortened_or_as_it_came() -> None:
    outcomes = compress_session(session(12), first_words, SETTINGS)
    last = outcomes[-1]
    assert last.active is not None
    assert len(swaps(outcomes)) >= 2, "a second compression builds on the first"
    sent = [each for each in last.sent if not str(each["content"]).startswith("Seen ([oN]")]
    assert len(sent) == len(last.prompt)
    for index, (ours, theirs) in enumerate(zip(sent, last.prompt, strict=True)):
        if index in last.active.taken:
            assert ours == {**theirs, "content": f"[o{index}]"}
            assert last.active.taken[index].text == theirs["content"]
        else:
            assert ours == theirs


def test_what_was_sent_before_stays_the_beginning_until_a_swap() -> None:
    outcomes = compress_session(session(12), first_words, SETTINGS)
    for before, after in pairwise(outcomes):
        if not after.is_swap:
            assert after.sent[: len(before.sent) + 1] == (*before.sent, before.reply)
        else:
            assert before.warmed, "what is swapped in was computed behind the turn before"
            assert after.sent[: len(before.warmed[-1])] == before.warmed[-1]


def test_a_distiller_that_fails_costs_the_job_and_nothing_else() -> None:
    def broken(assignment: Assignment) -> Note:
        raise RuntimeError("no model")

    outcomes = compress_session(session(12), broken, SETTINGS)
    assert all(each.sent == each.prompt for each in outcomes)
    ended = [each for outcome in outcomes for each in outcome.ended]
    assert ended
    assert {(each.how, each.why) for each in ended} == {("failed", "RuntimeError: no model")}


def test_a_history_that_is_edited_goes_out_as_it_came() -> None:
    exchanges = session(12)
    first = swaps(compress_session(exchanges, first_words, SETTINGS))[0]
    prompt = exchanges[first].prompt
    edited = ({**prompt[0], "content": "You are another agent."}, *prompt[1:])
    outcomes = compress_session([*exchanges[:first], Exchange(edited, exchanges[first].reply)], first_words, SETTINGS)
    assert outcomes[-1].sent == edited
    assert outcomes[-1].active is None


def test_the_task_and_the_thoughts_reach_the_distiller() -> None:
    seen: list[Assignment] = []

    def keep(assignment: Assignment) -> Note:
        seen.append(assignment)
        return first_words(assignment)

    compress_session(session(12), keep, SETTINGS)
    assert seen[0].task == "Find the port."
    assert "I read f1.txt." in seen[0].reasoning
    assert seen[0].observations[0].text.startswith("port 8417")
    assert seen[0].budget_tokens > 0


@pytest.mark.parametrize(("tokens_a_prompt", "starts"), [(300, False), (5_000, True)], ids=["below", "over"])
def test_the_counted_tokens_decide_about_the_threshold(tokens_a_prompt: int, starts: bool) -> None:
    # Three steps: their own estimate is over the threshold, what the engine counts may not be.
    outcomes = compress_session(session(3), first_words, SETTINGS, 1, lambda _: tokens_a_prompt)
    assert any(each.started is not None for each in outcomes) == starts
