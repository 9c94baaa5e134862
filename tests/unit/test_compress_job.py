"""The job: T0, T1, T2, and every way in which it can go wrong without the agent noticing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentinfer.compress.job import Distil, Ended, State, Warm
from agentinfer.compress.note import Note
from tests.agent_sessions import assistant, call, chat, user
from tests.compress_builders import SMALL, Play, history, messages_of, note_for, step

REPLY = assistant("Go on.", call("next"))


def begun(play: Play, num_steps: int = 8) -> Distil:
    play.turn(history(num_steps), REPLY)
    (distil,) = play.commands
    assert isinstance(distil, Distil)
    return distil


def ready(play: Play, num_steps: int = 8) -> Warm:
    (warm,) = play.note(begun(play, num_steps))
    play.warm(warm)
    assert play.job.state is State.READY
    return warm


def test_a_session_below_the_threshold_starts_nothing():
    play = Play(replace(SMALL, threshold_tokens=5000))
    play.turn(history(8), REPLY)
    assert (play.commands, play.job.state) == ([], State.IDLE)


def test_the_agent_goes_on_with_its_own_words_until_the_kv_is_there():
    play = Play()
    distil = begun(play, 8)
    assert play.turn(history(9), REPLY) == history(9)
    (warm,) = play.note(distil)
    assert play.turn(history(10), REPLY) == history(10)
    assert play.job.state is State.WARMING
    play.warm(warm)
    assert play.job.state is State.WARMING, "that was the KV of an older history"
    play.warm(play_commands_warm(play, history(10)))
    assert play.job.state is State.READY
    sent = play.turn(history(10), REPLY)
    assert play.commands[0] == Ended(distil.job, "swapped")
    assert sent != history(10)


def play_commands_warm(play: Play, bodies) -> Warm:
    (warm,) = play.job.turn_ended(chat(*bodies), messages_of([REPLY])[0], 1000, None, play.now_s)
    return warm


def test_the_kv_asked_for_is_that_of_the_next_prompt():
    play = Play()
    warm = ready(play, 8)
    own = [*history(8), REPLY, {"role": "tool", "tool_call_id": "next", "content": "short"}]
    sent = play.turn(own, assistant("Done."))
    assert list(warm.messages) == sent[: len(warm.messages)]
    assert len(sent) == len(warm.messages) + 1


def test_a_turn_with_much_that_is_new_is_not_the_one_to_swap_at():
    play = Play()
    ready(play, 8)
    long_result = {"role": "tool", "tool_call_id": "next", "content": "news " * 400}
    own = [*history(8), REPLY, long_result]
    assert play.turn(own, REPLY) == own
    (warm,) = play.commands
    assert isinstance(warm, Warm), "what the turn added is warmed too"
    assert list(warm.messages)[-2:] == [long_result, REPLY]


def test_a_note_does_not_wait_for_ever():
    play = Play(replace(SMALL, max_rounds=2, warm_share=1.0))
    ready(play, 8)
    own = history(8)
    for number in range(2):
        own = [*own, *step(100 + number)]
        assert play.turn(own, REPLY) == own
        play.warm(play.commands[-1])
    own = [*own, *step(200)]
    assert play.turn(own, REPLY) != own


@pytest.mark.parametrize("how", ["failed", "empty", "late", "cancelled"])
def test_a_job_that_ends_otherwise_leaves_the_session_as_it_was(how):
    play = Play()
    distil = begun(play, 8)
    if how == "failed":
        ended = play.job.failed(distil.job, "the compressor was killed")
    elif how == "empty":
        ended = play.note(distil, Note())
    elif how == "cancelled":
        ended = play.job.cancel("the session is over")
    else:
        play.now_s = SMALL.distil_timeout_s + 1
        play.turn(history(9), REPLY)
        ended = play.commands[:1]
    assert [(each.job, each.how) for each in ended] == [(distil.job, how)]
    assert play.turn(history(9), REPLY) == history(9)


def test_a_result_that_comes_after_its_job_changes_nothing():
    play = Play()
    first = begun(play, 8)
    play.job.failed(first.job, "timeout")
    second = begun(play, 9)
    assert second.job == first.job + 1
    assert play.note(first) == []
    assert play.job.failed(first.job, "again") == []
    assert play.job.state is State.DISTILLING
    (warm,) = play.note(second)
    assert play.job.warmed(first.job, len(warm.messages)) == []
    assert play.job.state is State.WARMING


def test_kv_that_does_not_come_ends_the_job():
    play = Play()
    play.note(begun(play, 8))
    play.now_s = SMALL.warm_timeout_s + 1
    assert play.turn(history(9), REPLY) == history(9)
    assert play.commands[0].how == "late"


def test_an_edited_history_gets_its_own_words_and_ends_the_job():
    play = Play()
    ready(play, 8)
    edited = history(8)
    edited[1] = user("Another task altogether.")
    assert play.turn(edited, REPLY) == edited
    assert [each.how for each in play.commands] == ["history_changed"]


def test_an_edit_while_the_note_is_written_ends_the_job():
    play = Play()
    distil = begun(play, 8)
    edited = history(9)
    edited[3] = {**edited[3], "content": "the client cut this result itself"}
    ended = play.job.noted(distil.job, note_for(distil.plan.taken), messages_of(edited), 0.0)
    assert [each.how for each in ended] == ["history_changed"]


def test_an_edit_after_the_swap_gets_its_own_words():
    play = Play()
    ready(play, 8)
    assert play.turn(history(8), REPLY) != history(8)
    edited = history(9)
    edited[3] = {**edited[3], "content": "the client cut this result itself"}
    assert play.turn(edited, REPLY) == edited


def test_two_clients_on_one_session_do_not_mix():
    play = Play()
    ready(play, 8)
    other = [user("A title for this conversation, please.")]
    conversation = chat(*other)
    assert play.job.turn_begins(conversation, 0.0) == (None, [])
    assert play.job.state is State.READY, "the job's own client may yet come"
    assert play.turn(history(8), REPLY) != history(8)


def test_a_second_job_builds_on_the_first():
    play = Play()
    ready(play, 8)
    first_sent = play.turn(history(8), REPLY)
    first = play.active
    play.turn(history(16), REPLY)
    (distil,) = play.commands
    assert all(each.index >= first.covers for each in distil.plan.taken)
    (warm,) = play.note(distil)
    assert list(warm.messages)[: len(first.messages)] == first_sent[: len(first.messages)]
    play.warm(warm)
    play.turn(history(16), REPLY)
    assert play.active.covers > first.covers
    assert play.active.taken.keys() > first.taken.keys()


def test_one_job_at_a_time():
    play = Play()
    begun(play, 8)
    play.turn(history(20), REPLY)
    assert play.commands == []
