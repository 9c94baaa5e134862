"""The prefix doctor and the record's reader take any input: a verdict or a named error, never another exception."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agentinfer.errors import TraceError
from agentinfer.messages import Conversation
from agentinfer.prefix_doctor import Cause, diagnose
from agentinfer.record import FORMAT, RecordWriter, TurnRecord, read_record
from agentinfer.sessions import TurnUsage
from tests.agent_sessions import SYSTEM, Bench, assistant, call, chat, hints, replied, text_prompt, tool, user

MESSAGES = st.lists(
    st.sampled_from(
        [
            SYSTEM,
            {"role": "system", "content": "It is 12:01."},
            user("go"),
            user("go on"),
            assistant("I look."),
            assistant("I look.", call("c1", a=1, b=2)),
            assistant("I look.", call("c1", b=2, a=1)),
            assistant("", {"id": "c1", "function": {"name": "bash", "arguments": "{not json"}}),
            tool("c1", "out"),
        ]
    ),
    min_size=1,
    max_size=7,
)
CONVERSATIONS = st.one_of(
    MESSAGES.map(lambda messages: chat(*messages)),
    st.text("ab", max_size=6).map(text_prompt),
    st.text("ab").map(
        lambda text: Conversation.from_body("/v1/responses", {"input": text, "previous_response_id": "r"})
    ),
)
TOKENS = st.integers(0, 300)
USAGES = st.none() | st.builds(TurnUsage, TOKENS, TOKENS, TOKENS)


@given(
    before=CONVERSATIONS,
    reply=st.sampled_from([assistant("I look."), assistant("I look.", call("c1", a=1, b=2)), assistant("x")]),
    now=CONVERSATIONS,
    usage=USAGES,
    prompt_tokens=st.integers(1, 400),
    cached_tokens=TOKENS,
    page_size=st.sampled_from([1, 16, 64]),
    max_bytes=st.sampled_from([2_300, 1 << 20]),
)
def test_every_pair_of_turns_gets_a_verdict(
    before, reply, now, usage, prompt_tokens, cached_tokens, page_size, max_bytes
):
    bench = Bench(max_bytes=max_bytes)
    bench.table.finish_turn(bench.begin(before, hints(session="a")), replied(reply), usage, "ok")
    previous = bench.begin(now, hints(session="a")).continues
    diagnosis = diagnose(previous, now, prompt_tokens, cached_tokens, page_size)
    assert json.loads(json.dumps(diagnosis.as_dict()))["cause"] == diagnosis.cause
    assert "\n" not in str(diagnosis)
    if diagnosis.cause is Cause.HIT:
        assert diagnosis.tokens_lost == 0
    if previous is not None and now.chain == before.chain and now.tools_digest == before.tools_digest:
        assert diagnosis.cause not in (Cause.SYSTEM_CHANGED, Cause.MESSAGE_EDITED, Cause.TOOLS_CHANGED)


FIELDS = st.sampled_from(
    ["session", "parent", "turn", "api", "t_s", "kept", "messages", "reply", "tools", "sampling", "ttft_s"]
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 3), st.text(max_size=3), MESSAGES, st.just([]), st.just({}), st.just([1])
)
LINES = st.fixed_dictionaries(
    {"session": st.sampled_from("ab"), "turn": st.just(0), "api": st.just("chat"), "t_s": st.just(0.5)}
    | {"kept": st.integers(0, 2), "messages": MESSAGES, "reply": st.none() | st.just(assistant("x"))}
)


@given(lines=st.lists(LINES | st.dictionaries(FIELDS, VALUES), max_size=4), cut=st.integers(0, 30))
def test_any_record_is_read_or_refused_by_name(lines, cut):
    header = {"format": FORMAT, "version": 1, "model": "m", "started_unix_s": 1}
    data = "".join(json.dumps(line) + "\n" for line in [header, *lines])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.jsonl"
        path.write_text(data[: len(data) - cut])
        refusal = ""
        try:
            read_record(path)
        except TraceError as error:
            refusal = str(error)
        assert not refusal or refusal.startswith(f"{path}")


@given(turns=st.lists(st.tuples(st.sampled_from("abc"), MESSAGES, st.none() | st.just(assistant("x"))), max_size=8))
def test_whatever_is_recorded_is_read_back(turns):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.jsonl"
        writer = RecordWriter(path, "m", 0.0, max_sessions=2)
        for index, (session, messages, reply) in enumerate(turns):
            assert writer.write(TurnRecord(session, None, index, "chat", float(index), messages, reply))
        writer.close()
        sessions = read_record(path).sessions
    for session, read in sessions.items():
        written = [(messages, reply) for name, messages, reply in turns if name == session]
        assert [(list(turn.messages), turn.reply) for turn in read] == written
