"""The session table: who continues whom, states, gaps, limits."""

from __future__ import annotations

import pytest

from agentinfer.hints import AgentHints, parse_hints
from agentinfer.messages import Conversation, Reply
from tests.agent_sessions import (
    SYSTEM,
    Bench,
    assistant,
    call,
    chat,
    hints,
    replied,
    text_prompt,
    tool,
    user,
)

TASK = user("Fix the bug.")
ASK = assistant("I look.", call("c1", command="ls"))
RESULT = tool("c1", "a.py")


@pytest.fixture
def bench():
    return Bench()


def test_extending_an_exchange_continues_its_session(bench):
    first = bench.serve(chat(SYSTEM, TASK), ASK)
    second = bench.begin(chat(SYSTEM, TASK, ASK, RESULT))
    assert (second.session_id, second.index, second.inferred) == (first.session_id, 1, True)
    assert (second.evidence, second.num_kept) == ("reply", 3)
    assert second.continues.turn == 0
    assert (first.continues, first.index, first.evidence) == (None, 0, "new")


def test_the_gap_is_from_the_reply_to_the_next_turn_and_names_its_tools(bench):
    turn = bench.begin(chat(SYSTEM, TASK))
    bench.clock.advance(2.0)
    reply = assistant("", call("c1", "bash"), call("c2", "read"), call("c3", "bash"))
    bench.finish(turn, reply)
    assert bench.table.get(turn.session_id).state == "in_tool"
    bench.clock.advance(5.0)
    second = bench.begin(chat(SYSTEM, TASK, reply, tool("c1", "x")))
    assert (second.tool_gap_s, second.tool_names) == (5.0, ("bash", "read"))
    bench.finish(second, assistant("Done."))
    third = bench.begin(chat(SYSTEM, TASK, reply, tool("c1", "x"), assistant("Done."), user("Thanks")))
    assert (third.session_id, third.tool_gap_s) == (turn.session_id, None)


def test_states(bench):
    turn = bench.begin(chat(SYSTEM, TASK))
    assert bench.table.counts() == {"running": 1, "in_tool": 0, "idle": 0, "finished": 0}
    bench.finish(turn, ASK)
    assert bench.table.get(turn.session_id).state == "in_tool"
    turn = bench.serve(chat(SYSTEM, TASK, ASK, RESULT), assistant("Done."))
    assert bench.table.get(turn.session_id).state == "idle"
    assert bench.table.close(turn.session_id)
    assert bench.table.get(turn.session_id).state == "finished"
    again = bench.begin(chat(SYSTEM, TASK, ASK, RESULT, assistant("Done."), user("One more")))
    assert again.session_id == turn.session_id
    assert bench.table.get(turn.session_id).state == "running"
    assert not bench.table.close("unknown")


def test_last_finishes_the_session_whatever_the_reply_calls(bench):
    turn = bench.serve(chat(SYSTEM, TASK), ASK, hints(session="a", last=True))
    assert bench.table.get("a").state == "finished"
    assert turn.inferred is False


def test_a_hinted_tool_is_waited_for_where_the_reply_has_no_tool_calls(bench):
    bench.serve(chat(SYSTEM, TASK), assistant("```bash\nls\n```"), hints(session="a", tool="bash"))
    bench.clock.advance(1.5)
    turn = bench.begin(chat(SYSTEM, TASK, assistant("```bash\nls\n```"), user("a.py")), hints(session="a"))
    assert (turn.tool_gap_s, turn.tool_names) == (1.5, ("bash",))


def test_the_same_task_twice_is_two_sessions_told_apart_by_the_reply(bench):
    other_ask = assistant("I think.", call("c9", command="pwd"))
    one = bench.serve(chat(SYSTEM, TASK), ASK)
    two = bench.serve(chat(SYSTEM, TASK), other_ask)
    assert one.session_id != two.session_id
    assert (one.parent_id, two.parent_id) == (None, None)
    assert bench.begin(chat(SYSTEM, TASK, other_ask, tool("c9", "/"))).session_id == two.session_id
    assert bench.begin(chat(SYSTEM, TASK, ASK, RESULT)).session_id == one.session_id


def test_parallel_samples_of_a_first_turn_are_sessions_of_their_own(bench):
    turns = [bench.begin(chat(SYSTEM, TASK)) for _ in range(3)]
    assert len({turn.session_id for turn in turns}) == 3
    assert all(turn.parent_id is None for turn in turns)


def test_parallel_samples_of_a_later_turn_fork_the_session(bench):
    first = bench.serve(chat(SYSTEM, TASK), ASK)
    one, two = (bench.begin(chat(SYSTEM, TASK, ASK, RESULT)) for _ in range(2))
    assert one.session_id == first.session_id
    assert (two.parent_id, two.evidence) == (first.session_id, "fork")
    bench.finish(one, assistant("A"))
    bench.finish(two, assistant("B"))
    of_two = bench.begin(chat(SYSTEM, TASK, ASK, RESULT, assistant("B"), user("go on")))
    assert of_two.session_id == two.session_id


REWRITTEN = [
    ("stripped", assistant("<think>hm</think>\nI look.\n"), assistant("I look."), "edited_reply"),
    ("reserialised", assistant("", call("c1", b=1, a=2)), assistant("", call("c1", a=2, b=1)), "tool_call"),
    ("replaced", assistant("long"), assistant("short"), "edited_reply"),
]


@pytest.mark.parametrize(
    ("reply", "sent_back", "evidence"), [case[1:] for case in REWRITTEN], ids=[case[0] for case in REWRITTEN]
)
def test_a_client_may_rewrite_our_reply(bench, reply, sent_back, evidence):
    first = bench.serve(chat(SYSTEM, TASK), reply)
    second = bench.begin(chat(SYSTEM, TASK, sent_back, user("go on")))
    assert (second.session_id, second.evidence, second.num_kept) == (first.session_id, evidence, 2)


def test_our_exact_reply_outweighs_what_another_session_asked(bench):
    """Found by the state machine: a client's new clock made its request look like another session's, reply apart."""

    def at(minute):
        return {"role": "system", "content": f"It is 12:{minute:02}."}

    one = bench.serve(chat(at(0), TASK), assistant("Reply one."))
    bench.serve(chat(at(1), TASK), assistant("Reply two."))
    second = bench.begin(chat(at(1), TASK, assistant("Reply one."), user("go on")))
    assert second.session_id == one.session_id


def test_a_rewritten_reply_goes_to_the_session_it_resembles(bench):
    replies = [assistant(f"<think>{word}</think>I go {word}.") for word in ("left", "right")]
    turns = [bench.serve(chat(SYSTEM, TASK), reply) for reply in replies]
    second = bench.begin(chat(SYSTEM, TASK, assistant("I go right."), user("go on")))
    assert second.session_id == turns[1].session_id


def test_a_clock_in_the_system_prompt_does_not_hide_the_session(bench):
    def at(minute):
        return {"role": "system", "content": f"It is 12:{minute:02}."}

    first = bench.serve(chat(at(1), TASK), assistant("Hello."))
    second = bench.serve(chat(at(2), TASK, assistant("Hello."), user("And?")), assistant("Well."))
    assert (second.session_id, second.evidence, second.num_kept) == (first.session_id, "edited_beginning", 0)


def test_a_repeated_tool_call_identifies_the_session_when_all_else_changed(bench):
    first = bench.serve(chat(SYSTEM, TASK), assistant("I look.", call("c1", b=1, a=2)))
    edited = chat(user("A summary of all."), assistant("", call("c1", a=2, b=1)), RESULT)
    second = bench.begin(edited)
    assert (second.session_id, second.evidence) == (first.session_id, "tool_call")


def test_numbered_tool_calls_of_several_sessions_identify_none_of_them(bench):
    for word in ("one", "two"):
        bench.serve(chat(SYSTEM, user(word)), assistant("", call("functions.ls:0")))
    turn = bench.begin(chat(user("other"), assistant("x", call("functions.ls:0")), tool("functions.ls:0", "y")))
    assert turn.evidence == "new"


def test_old_tool_results_cut_by_the_client_do_not_hide_the_session(bench):
    history = [SYSTEM, TASK]
    ids = set()
    for step in range(6):
        shown = [
            {**message, "content": "(cut)"} if message["role"] == "tool" and position < len(history) - 2 else message
            for position, message in enumerate(history)
        ]
        reply = assistant("", call(f"c{step}", command=str(step)))
        ids.add(bench.serve(chat(*shown), reply).session_id)
        history += [reply, tool(f"c{step}", f"output {step}")]
    assert len(ids) == 1


def grown(bench):
    """A session of three turns without tools: its messages, and its id."""
    messages = [SYSTEM, TASK]
    for word in ("one", "two", "three"):
        turn = bench.serve(chat(*messages), assistant(word))
        messages += [assistant(word), user(f"after {word}")]
    return messages, turn.session_id


def test_regenerate_and_rewind_continue_an_idle_session(bench):
    messages, session_id = grown(bench)
    regenerated = bench.serve(chat(*messages[:6]), assistant("three again"))
    assert (regenerated.session_id, regenerated.evidence) == (session_id, "rewind")
    edited = bench.serve(chat(*messages[:3], user("something else")), assistant("x"))
    assert (edited.session_id, edited.evidence) == (session_id, "rewind")
    assert edited.num_kept == 3


def test_a_rewind_of_a_session_that_waits_for_its_tool_is_a_child(bench):
    messages, session_id = grown(bench)
    bench.serve(chat(*messages), ASK)
    turn = bench.begin(chat(*messages[:3], user("something else")))
    assert (turn.parent_id, turn.evidence) == (session_id, "fork")


def test_repeating_only_a_first_request_is_a_new_session(bench):
    one = bench.serve(chat(SYSTEM, TASK), assistant("Hello."))
    two = bench.serve(chat(SYSTEM, TASK), assistant("Hi."))
    assert two.session_id != one.session_id


def test_a_clients_compaction_is_a_new_session_unless_hinted(bench):
    compacted = chat(SYSTEM, user("Summary of what was done so far: much."))
    bench.serve(chat(SYSTEM, TASK), ASK)
    assert bench.begin(compacted).evidence == "new"
    bench.serve(chat(SYSTEM, TASK), ASK, hints(session="a"))
    turn = bench.begin(compacted, hints(session="a"))
    assert (turn.session_id, turn.index, turn.num_kept) == ("a", 1, 1)


@pytest.mark.parametrize("wrap", ["{}", "Your task:\n{}\nReport back."], ids=["verbatim", "wrapped"])
def test_a_sub_agent_becomes_a_child_of_the_session_that_called_it(bench, wrap):
    prompt = 'Find every caller of "parse_hints"\nand list them with their line numbers.'
    parent = bench.serve(chat(SYSTEM, TASK), assistant("", call("c1", "agent", prompt=prompt, kind="search")))
    child = bench.serve(
        chat({"role": "system", "content": "Sub-agent."}, user(wrap.format(prompt))), assistant("None.")
    )
    assert (child.parent_id, child.evidence) == (parent.session_id, "sub_agent")
    answer = tool("c1", "None.")
    ask = assistant("", call("c1", "agent", prompt=prompt, kind="search"))
    assert bench.begin(chat(SYSTEM, TASK, ask, answer)).session_id == parent.session_id
    hinted = bench.begin(chat(user(prompt)), hints(session="h"))
    assert hinted.parent_id is None  # the parent runs again, so it waits for no tool


def test_short_texts_do_not_make_children(bench):
    bench.serve(chat(SYSTEM, TASK), assistant("", call("c1", command="ls -la")))
    assert bench.begin(chat(user("ls -la"))).parent_id is None


def test_previous_response_id_continues_and_forks(bench):
    def responses(text, **fields):
        return Conversation.from_body("/v1/responses", {"input": text, **fields})

    def answer(response_id):
        content = [{"type": "output_text", "text": "Hello."}]
        output = [{"type": "message", "role": "assistant", "content": content}]
        return Reply.from_json("responses", {"id": response_id, "output": output})

    first = bench.begin(responses("Hi"))
    bench.finish(first, answer("resp_1"))
    second = bench.begin(responses("And?", previous_response_id="resp_1"))
    assert (second.session_id, second.evidence, second.num_kept) == (first.session_id, "response_id", 0)
    bench.finish(second, answer("resp_2"))
    rewound = bench.begin(responses("Or?", previous_response_id="resp_1"))
    assert (rewound.session_id, rewound.evidence) == (first.session_id, "rewind")
    fork = bench.begin(responses("Or else?", previous_response_id="resp_1"))
    assert (fork.parent_id, fork.evidence) == (first.session_id, "fork")
    assert bench.begin(responses("?", previous_response_id="resp_9")).evidence == "new"


def test_text_prompts_continue_by_their_characters(bench):
    start = "Question: what is it? " * 40
    first = bench.begin(text_prompt(start))
    bench.finish(first, Reply("A thing."))
    second = bench.begin(text_prompt(start + "A thing.\nQuestion: why?"))
    assert (second.session_id, second.evidence) == (first.session_id, "reply")
    bench.finish(second, Reply("Because."))
    third = bench.begin(text_prompt(start + "A thing.\nQuestion: why? because"))
    assert (third.session_id, third.evidence) == (first.session_id, "edited_reply")
    bench.finish(third, Reply("x"))
    other = bench.begin(text_prompt(start[:-1] + "! A thing."))
    assert other.evidence == "new"


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 2047, 2048, 4095, 4096, 4097, 8191, 8192, 12289])
def test_text_prompts_of_any_length_continue(bench, length):
    decoys = [bench.begin(text_prompt("y" * step)) for step in (1, 16, 100, 4096)]
    for turn in decoys:
        bench.finish(turn, Reply("z"))
    first = bench.begin(text_prompt("x" * length + "é"))
    bench.finish(first, Reply("r"))
    assert bench.begin(text_prompt("x" * length + "ér and more")).session_id == first.session_id


def test_token_prompts_continue_by_their_ids(bench):
    def tokens(*ids):
        return Conversation.from_body("/generate", {"input_ids": list(ids)})

    first = bench.begin(tokens(1, 2, 3))
    bench.finish(first, Reply("x", token_ids=(4, 5)))
    assert bench.begin(tokens(1, 2, 3, 4, 5, 6)).session_id == first.session_id


def test_an_echoed_prompt_is_not_counted_twice(bench):
    first = bench.begin(Conversation.from_body("/v1/completions", {"prompt": "Say a word: ", "echo": True}))
    bench.finish(first, Reply("Say a word: word"))
    second = bench.begin(text_prompt("Say a word: word. Again: "))
    assert (second.session_id, second.evidence) == (first.session_id, "reply")


@pytest.mark.parametrize("outcome", ["client_gone", "error"])
def test_a_failed_turn_is_retried_in_its_session(bench, outcome):
    turn = bench.begin(chat(SYSTEM, TASK))
    bench.finish(turn, Reply(), outcome)
    retry = bench.serve(chat(SYSTEM, TASK), ASK)
    assert (retry.session_id, retry.evidence, retry.continues) == (turn.session_id, "retry", None)
    assert bench.begin(chat(SYSTEM, TASK, ASK, RESULT)).session_id == turn.session_id


def test_a_retry_of_a_later_turn_stays_in_its_session(bench):
    first = bench.serve(chat(SYSTEM, TASK), ASK)
    bench.finish(bench.begin(chat(SYSTEM, TASK, ASK, RESULT)), Reply(), "error")
    retry = bench.begin(chat(SYSTEM, TASK, ASK, RESULT))
    assert (retry.session_id, retry.continues.turn, retry.tool_gap_s) == (first.session_id, 0, None)


def test_a_stopped_reply_that_the_client_keeps_continues(bench):
    turn = bench.begin(chat(SYSTEM, TASK))
    bench.finish(turn, replied(assistant("I was say")), "client_gone")
    second = bench.begin(chat(SYSTEM, TASK, assistant("I was say"), user("go on")))
    assert (second.session_id, second.evidence) == (turn.session_id, "reply")


def test_an_abandoned_turn_never_was(bench):
    turn = bench.begin(chat(SYSTEM, TASK))
    bench.table.abandon(turn)
    assert len(bench.table) == 0
    first = bench.serve(chat(SYSTEM, TASK), ASK)
    bench.clock.advance(3.0)
    bench.table.abandon(bench.begin(chat(SYSTEM, TASK, ASK, RESULT)))
    bench.table.check_integrity()
    bench.clock.advance(4.0)
    again = bench.begin(chat(SYSTEM, TASK, ASK, RESULT))
    assert (again.session_id, again.index, again.tool_gap_s) == (first.session_id, 1, 7.0)


def test_ending_a_turn_twice_changes_nothing(bench):
    turn = bench.serve(chat(SYSTEM, TASK), ASK)
    bench.finish(turn, assistant("again"))
    bench.table.abandon(turn)
    view = bench.table.get(turn.session_id)
    assert (view.state, view.num_turns, view.completion_tokens) == ("in_tool", 1, 10)


def test_hints_name_session_turn_parent_and_role(bench):
    turn = bench.serve(chat(SYSTEM, TASK), ASK, hints(session="a", parent="p", turn=4, role="planner"))
    assert (turn.session_id, turn.index, turn.parent_id, turn.inferred) == ("a", 4, "p", False)
    unrelated = bench.begin(chat(user("x")), hints(session="a"))
    assert (unrelated.session_id, unrelated.index, unrelated.evidence) == ("a", 5, "hint")
    view = bench.table.get("a")
    assert (view.source, view.role, view.parent_id) == ("agentinfer", "planner", "p")


def test_a_client_that_stops_sending_its_hint_keeps_its_session(bench):
    bench.serve(chat(SYSTEM, TASK), ASK, hints(session="a"))
    turn = bench.begin(chat(SYSTEM, TASK, ASK, RESULT))
    assert (turn.session_id, turn.inferred) == ("a", True)


def cache_key(name):
    return parse_hints({"prompt_cache_key": name}, {})


def test_a_prompt_cache_key_of_one_conversation_is_its_session(bench):
    first = bench.serve(chat(SYSTEM, TASK), ASK, cache_key("k"))
    second = bench.serve(chat(SYSTEM, TASK, ASK, RESULT), assistant("Done."), cache_key("k"))
    rewritten = bench.serve(chat(user("Compacted"), assistant("Yes."), user("go on")), assistant("x"), cache_key("k"))
    assert {turn.session_id for turn in (first, second, rewritten)} == {"k"}
    assert not any(turn.inferred for turn in (first, second, rewritten))


def test_a_prompt_cache_key_shared_by_an_application_does_not_mix_its_sessions(bench):
    asks = [assistant("", call(f"c{number}", command="ls")) for number in range(3)]
    turns = [bench.serve(chat(SYSTEM, TASK), ask, cache_key("app")) for ask in asks]
    assert len({turn.session_id for turn in turns}) == 3
    for turn, ask in zip(turns, asks, strict=True):
        following = bench.begin(chat(SYSTEM, TASK, ask, RESULT), cache_key("app"))
        assert following.session_id == turn.session_id


def test_a_refused_turn_lets_limits_hold_again():
    """Found by the state machine: the session of a refused turn stayed over the limit."""
    bench = Bench(max_sessions=1)
    failed = bench.begin(chat(SYSTEM, TASK))
    bench.finish(failed, Reply(), "error")
    retry = bench.begin(chat(SYSTEM, TASK))
    bench.begin(chat(SYSTEM, user("other")))
    bench.table.abandon(retry)
    bench.table.check_integrity()
    assert len(bench.table) == 1


def test_two_turns_of_a_session_at_once_end_independently(bench):
    """Found by the state machine: tools pending while another turn of the session still runs."""
    one, two = (bench.begin(chat(SYSTEM, TASK), hints(session="a")) for _ in range(2))
    bench.finish(two, ASK)
    assert bench.table.get("a").state == "running"
    bench.finish(one, assistant("Done."))
    assert bench.table.get("a").state == "idle"


def test_idle_sessions_expire_and_running_ones_do_not():
    bench = Bench(expiry_s=10.0)
    idle = bench.serve(chat(SYSTEM, TASK), ASK)
    running = bench.begin(chat(SYSTEM, user("long")))
    bench.clock.advance(9.0)
    assert bench.table.expire() == ()
    bench.clock.advance(1.0)
    assert bench.table.expire() == (idle.session_id,)
    assert bench.table.get(running.session_id) is not None
    bench.finish(running, ASK)
    assert bench.begin(chat(SYSTEM, TASK, ASK, RESULT)).evidence != "reply"
    assert bench.table.totals["expired"] == 1


def test_the_least_recently_used_session_gives_way():
    bench = Bench(max_sessions=2)
    one, two = (bench.serve(chat(user(name)), assistant(name)) for name in ("one", "two"))
    bench.serve(chat(user("one"), assistant("one"), user("more")), assistant("1"))
    three = bench.serve(chat(user("three")), assistant("three"))
    assert [view.session_id for view in bench.table.list()] == [three.session_id, one.session_id]
    assert bench.table.totals["evicted"] == 1
    assert bench.table.get(two.session_id) is None


def test_sessions_at_work_are_kept_over_the_limit():
    bench = Bench(max_sessions=2)
    turns = [bench.begin(chat(user(str(number)))) for number in range(5)]
    assert len(bench.table) == 5
    for turn in turns:
        bench.finish(turn, assistant("x"))
    assert len(bench.table) == 2


def test_texts_give_way_before_sessions_and_the_session_is_still_recognised():
    bench = Bench(max_bytes=110_000)
    turns = [bench.serve(chat(user(str(number) * 30_000)), assistant("ok")) for number in range(5)]
    kept = [bench.table.get(turn.session_id).texts_kept for turn in turns]
    assert kept == [False, False, True, True, True]
    assert bench.table.size_bytes <= 110_000
    again = bench.begin(chat(user("0" * 30_000), assistant("ok"), user("more")))
    assert (again.session_id, again.num_kept, again.continues.messages) == (turns[0].session_id, 2, None)


def test_one_session_beyond_the_byte_budget_keeps_no_texts():
    bench = Bench(max_bytes=10_000)
    turn = bench.serve(chat(user("x" * 50_000)), assistant("ok"))
    view = bench.table.get(turn.session_id)
    assert (view.texts_kept, view.num_messages) == (False, 1)


def test_the_view_is_json_with_notes(bench):
    turn = bench.serve(chat(SYSTEM, TASK), ASK)
    bench.clock.advance(2.0)
    bench.table.annotate(turn.session_id, diagnosis={"cause": "hit"})
    bench.table.annotate("unknown", diagnosis={})
    assert bench.table.get(turn.session_id).as_dict() == {
        "id": "s1",
        "parent": None,
        "source": "inferred",
        "role": None,
        "state": "in_tool",
        "turns": 1,
        "running": 0,
        "tools": ["bash"],
        "age_s": 2.0,
        "idle_s": 2.0,
        "prompt_tokens": 100,
        "cached_tokens": 50,
        "completion_tokens": 10,
        "messages": 2,
        "texts_kept": True,
        "diagnosis": {"cause": "hit"},
    }


def test_notes_count_towards_the_byte_budget():
    bench = Bench(max_bytes=10_000)
    turns = [bench.serve(chat(user(name)), assistant(name)) for name in ("one", "two")]
    bench.table.annotate(turns[0].session_id, history=["x" * 1000] * 5)
    bench.table.check_integrity()
    assert [view.texts_kept for view in bench.table.list()] == [True, False]


def test_the_same_requests_give_the_same_sessions():
    def run():
        bench = Bench(max_sessions=3)
        for number in range(8):
            bench.serve(chat(SYSTEM, user(str(number % 5))), assistant(str(number)))
            bench.clock.advance(0.5)
        return [view.as_dict() for view in bench.table.list()]

    assert run() == run()


def test_an_id_the_client_took_is_not_given_out_again(bench):
    bench.serve(chat(user("a")), assistant("a"), AgentHints(session="s1"))
    assert bench.serve(chat(user("b")), assistant("b")).session_id == "s2"
