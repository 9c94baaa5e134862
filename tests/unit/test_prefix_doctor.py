"""The prefix doctor names the cause, the message and the characters."""

from __future__ import annotations

import pytest

from agentinfer.messages import Conversation, Reply
from agentinfer.prefix_doctor import Cause, diagnose
from agentinfer.sessions import TurnUsage
from tests.agent_sessions import SYSTEM, Bench, assistant, call, chat, hints, replied, text_prompt, tool, user

TASK = user("Fix the bug in the parser, then run its tests and say what you found.")
ASK = assistant("I look.", call("c1", path="a.py", depth=2))
RESULT = tool("c1", "1: def parse():")
TOOLS = [{"type": "function", "function": {"name": "bash"}}]
USAGE = TurnUsage(prompt_tokens=1000, cached_tokens=0, completion_tokens=101)


def after(first, reply, usage=USAGE, **limits):
    """The snapshot of a turn that asked `first` and was answered by `reply`."""
    bench = Bench(**limits)
    turn = bench.begin(first, hints(session="a"))
    answer = reply if isinstance(reply, Reply) else replied(reply)
    bench.table.finish_turn(turn, answer, usage, "ok")
    return bench.begin(chat(user("any")), hints(session="a")).continues


def examine(first, reply, now, cached_tokens=0, prompt_tokens=1200, page_size=1, **options):
    return diagnose(after(first, reply, **options), now, prompt_tokens, cached_tokens, page_size)


CONTINUED = chat(SYSTEM, TASK, ASK, RESULT)


def test_a_first_turn_is_no_miss():
    diagnosis = diagnose(None, CONTINUED, 1200, 0)
    assert (diagnosis.cause, diagnosis.is_miss, str(diagnosis)) == (Cause.FIRST_TURN, False, "prefix first turn")


@pytest.mark.parametrize(
    ("cached_tokens", "page_size", "expected"), [(1100, 1, 1100), (1088, 32, 1088), (1200, 1, 1100)]
)
def test_all_that_was_left_is_a_hit(cached_tokens, page_size, expected):
    diagnosis = examine(chat(SYSTEM, TASK), ASK, CONTINUED, cached_tokens, page_size=page_size)
    assert (diagnosis.cause, diagnosis.tokens_expected, diagnosis.tokens_lost) == (Cause.HIT, expected, 0)
    assert str(diagnosis) == "prefix hit"


def test_a_shorter_prompt_can_hit_no_more_than_itself():
    regenerated = examine(chat(SYSTEM, TASK), ASK, chat(SYSTEM, TASK), cached_tokens=999, prompt_tokens=1000)
    assert regenerated.cause is Cause.HIT


def test_a_clock_in_the_system_prompt():
    def at(time):
        return {"role": "system", "content": f"You are careful.\nThe time is 2026-11-23 {time}. Use tools."}

    diagnosis = examine(chat(at("10:00:01"), TASK), ASK, chat(at("10:02:44"), TASK, ASK, RESULT), cached_tokens=12)
    assert (diagnosis.cause, diagnosis.message_index, diagnosis.role) == (Cause.SYSTEM_CHANGED, 0, "system")
    assert diagnosis.tokens_lost == 1088
    assert diagnosis.looks_like == "timestamp"
    assert str(diagnosis) == (
        "prefix miss: system changed at message 0 (system), 1088 of 1100 cached tokens lost; "
        r"was «…are careful.\nThe time is 2026-11-23 10:00:01. Use tools.», "
        r"now «…are careful.\nThe time is 2026-11-23 10:02:44. Use tools.», looks like a timestamp. "
        "Keep the timestamp out of what is sent every turn, or move it to the end of the last message."
    )


LOOKS = [
    ("Step 7 of many", "Step 8 of many", "counter"),
    ("Step 99 left", "Step 100 left", "counter"),
    ("id 123e4567-e89b-12d3-a456-426614174000.", "id 123e4567-e89b-12d3-a456-426614174abc.", "uuid"),
    ("nonce deadbeefdeadbeef00", "nonce deadbeefdeadbeef11", "uuid"),
    ("at 1763891154 s", "at 1763891199 s", "timestamp"),
    ("Today: Mon, 23 November", "Today: Tue, 24 November", "timestamp"),
    ("It is 9:05 PM", "It is 9:06 PM", "timestamp"),
    ("May 4, 2026", "May 5, 2026", "timestamp"),
    ("use the red pen", "use the blue pen", None),
]


@pytest.mark.parametrize(("before", "now", "kind"), LOOKS, ids=[f"{kind}-{before}" for before, _, kind in LOOKS])
def test_what_changes_by_itself_is_recognised(before, now, kind):
    diagnosis = examine(chat(SYSTEM, user(before)), ASK, chat(SYSTEM, user(now), ASK, RESULT), cached_tokens=20)
    assert (diagnosis.cause, diagnosis.message_index) == (Cause.MESSAGE_EDITED, 1)
    assert diagnosis.looks_like == kind


CHANGES = [
    ("tools", Cause.TOOLS_CHANGED, None, chat(SYSTEM, TASK, ASK, RESULT, tools=TOOLS)),
    ("system", Cause.SYSTEM_CHANGED, 0, chat({"role": "system", "content": "You are hasty."}, TASK, ASK, RESULT)),
    (
        "system and tools",
        Cause.SYSTEM_CHANGED,
        0,
        chat({"role": "system", "content": "You are hasty."}, TASK, ASK, RESULT, tools=TOOLS),
    ),
    ("edited", Cause.MESSAGE_EDITED, 1, chat(SYSTEM, user("Fix another bug."), ASK, RESULT)),
    ("inserted", Cause.MESSAGE_EDITED, 1, chat(SYSTEM, user("Note this."), user("And this."), TASK, ASK, RESULT)),
    ("removed", Cause.MESSAGE_REMOVED, 1, chat(SYSTEM, ASK, RESULT)),
    ("cut short", Cause.MESSAGE_REMOVED, 1, chat(SYSTEM)),
    (
        "reserialised",
        Cause.TOOL_CALL_RESERIALISED,
        2,
        chat(SYSTEM, TASK, assistant("I look.", call("c1", depth=2, path="a.py")), RESULT),
    ),
    ("other arguments", Cause.REPLY_EDITED, 2, chat(SYSTEM, TASK, assistant("I look.", call("c1", path="b")), RESULT)),
    ("reply trimmed", Cause.REPLY_EDITED, 2, chat(SYSTEM, TASK, assistant("I look."), user("go on"))),
    ("reply left out", Cause.MESSAGE_EDITED, 2, chat(SYSTEM, TASK, user("go on"))),
]


@pytest.mark.parametrize(("cause", "index", "now"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES])
def test_changes_by_the_client(cause, index, now):
    diagnosis = examine(chat(SYSTEM, TASK), ASK, now, cached_tokens=30)
    assert (diagnosis.cause, diagnosis.message_index) == (cause, index)
    assert diagnosis.tokens_lost == 1070
    assert diagnosis.advice in str(diagnosis)


def test_a_reserialised_call_in_an_older_message_is_seen_too():
    history = (SYSTEM, TASK, ASK, RESULT)
    now = chat(SYSTEM, TASK, assistant("I look.", call("c1", depth=2, path="a.py")), RESULT, assistant("x"), user("y"))
    diagnosis = examine(chat(*history), assistant("x"), now, cached_tokens=30)
    assert (diagnosis.cause, diagnosis.message_index) == (Cause.TOOL_CALL_RESERIALISED, 2)
    assert "path" in diagnosis.before
    assert "depth" in diagnosis.now


def test_an_unchanged_conversation_that_misses_was_evicted():
    diagnosis = examine(chat(SYSTEM, TASK), ASK, CONTINUED, cached_tokens=200)
    assert (diagnosis.cause, diagnosis.tokens_lost, diagnosis.message_index) == (Cause.EVICTED, 900, None)
    assert str(diagnosis).startswith("prefix miss: evicted, 900 of 1100 cached tokens lost. The cache needed the room")


@pytest.mark.parametrize("cached_tokens", [1000, 1060, 1099], ids=["whole reply", "part of it", "one token"])
def test_a_reply_that_tokenises_differently(cached_tokens):
    diagnosis = examine(chat(SYSTEM, TASK), ASK, CONTINUED, cached_tokens)
    assert (diagnosis.cause, diagnosis.tokens_lost) == (Cause.TOKENISATION, 1100 - cached_tokens)


def test_reasoning_that_is_not_sent_back_is_an_edited_reply():
    reply = Reply("I look.", reasoning_text="Where could it be?")
    diagnosis = examine(chat(SYSTEM, TASK), reply, chat(SYSTEM, TASK, assistant("I look."), user("go")), 1000)
    assert (diagnosis.cause, diagnosis.message_index) == (Cause.REPLY_EDITED, 2)
    assert "reasoning_content" in diagnosis.advice
    kept = chat(SYSTEM, TASK, {**assistant("I look."), "reasoning_content": "Where could it be?"}, user("go"))
    assert examine(chat(SYSTEM, TASK), reply, kept, 1000).cause is Cause.TOKENISATION


def test_without_texts_the_message_is_named_but_not_shown():
    now = chat(SYSTEM, user("Fix another bug."), ASK, RESULT)
    diagnosis = examine(chat(SYSTEM, TASK), ASK, now, cached_tokens=30, max_bytes=2_600)
    assert (diagnosis.cause, diagnosis.message_index, diagnosis.role) == (Cause.MESSAGE_EDITED, 1, "user")
    assert (diagnosis.before, diagnosis.now) == (None, None)


def test_without_the_engines_counts_only_a_total_miss_is_told():
    assert examine(chat(SYSTEM, TASK), ASK, CONTINUED, 0, usage=None).cause is Cause.EVICTED
    assert examine(chat(SYSTEM, TASK), ASK, CONTINUED, 5, usage=None).cause is Cause.HIT


def test_a_partial_request_is_judged_by_its_tokens_alone():
    now = Conversation.from_body("/v1/responses", {"input": "And?", "previous_response_id": "r1"})
    assert examine(chat(SYSTEM, TASK), ASK, now, 1100).cause is Cause.HIT
    assert examine(chat(SYSTEM, TASK), ASK, now, 0).cause is Cause.EVICTED


PROMPT = "Question: what is it?\nAnswer:"
PROMPTS = [
    ("evicted", PROMPT + " A thing.\nQuestion:", Cause.EVICTED),
    ("reply edited", PROMPT + " A thong.\nQuestion:", Cause.REPLY_EDITED),
    ("edited", "Question: who is it?\nAnswer: A thing.", Cause.MESSAGE_EDITED),
]


@pytest.mark.parametrize(("now", "cause"), [case[1:] for case in PROMPTS], ids=[case[0] for case in PROMPTS])
def test_text_prompts(now, cause):
    diagnosis = examine(text_prompt(PROMPT), Reply(" A thing."), text_prompt(now), cached_tokens=5)
    assert diagnosis.cause is cause


def test_a_difference_far_into_a_large_message_is_found_at_once():
    text = "word " * 400_000
    changed = text[:1_000_000] + "WORD" + text[1_000_004:]
    diagnosis = examine(chat(user(text)), ASK, chat(user(changed), ASK, RESULT), cached_tokens=3)
    assert diagnosis.now.startswith("…")
    assert diagnosis.now.endswith("…")
    assert "WORD" in diagnosis.now
    assert len(diagnosis.now) <= 82


def test_the_diagnosis_is_json():
    diagnosis = examine(chat(SYSTEM, TASK), ASK, CONTINUED, cached_tokens=200)
    assert diagnosis.as_dict() == {
        "cause": "evicted",
        "tokens_expected": 1100,
        "tokens_lost": 900,
        "advice": diagnosis.advice,
    }
