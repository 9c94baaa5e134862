"""Sessions of real agents, many at once in any order, are told apart without hints."""

from __future__ import annotations

import json
import logging
import lzma
import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from agentinfer.messages import DIGEST_BYTES
from tests.agent_sessions import Bench, assistant, chat, generated_sessions, replied, turn_positions

logger = logging.getLogger(__name__)

FILES = ("airline.jsonl.xz", "swe_dev.jsonl.xz", "swe_glm45.jsonl.xz")


def recorded_sessions():
    folder = os.environ.get("AGENTINFER_TRACES")
    if not folder:
        return generated_sessions(num_sessions=24, num_turns=8, seed=5)
    sessions = []
    for name in FILES:
        with lzma.open(Path(folder) / name, "rt") as lines:
            sessions += [json.loads(line)["messages"] for line in lines]
    return [[{key: value for key, value in m.items() if key != "t"} for m in messages] for messages in sessions]


def as_sent(messages, turn):
    return messages


def with_a_clock(messages, turn):
    return [{**messages[0], "content": f"{messages[0]['content']}\nTurn {turn}"}, *messages[1:]]


def without_thoughts(messages, turn):
    return [
        {**m, "content": re.sub(r"<think>.*?</think>", "", m["content"] or "", flags=re.S).strip()}
        if m["role"] == "assistant"
        else m
        for m in messages
    ]


def with_old_results_cut(messages, turn):
    results = [position for position, message in enumerate(messages) if message["role"] == "tool"]
    cut = set(results[:-5])
    return [{**m, "content": "(cut)"} if position in cut else m for position, m in enumerate(messages)]


@pytest.mark.parametrize("client", [as_sent, with_a_clock, without_thoughts, with_old_results_cut])
def test_every_turn_goes_to_its_session(client):
    """A turn in a wrong session is tolerated only where the two sessions had said the same until then."""
    # Every session as it was sent; a third of them, which is enough, for each way clients edit.
    sessions = recorded_sessions()[:: 1 if client is as_sent else 3]
    rng = random.Random(7)
    bench = Bench(max_sessions=len(sessions))
    positions = [list(turn_positions(messages)) for messages in sessions]
    next_turn = [0] * len(sessions)
    named: dict[int, str] = {}
    seen: dict[str, tuple[int, int]] = {}  # session id -> (session, turn) it last served
    evidence: Counter[str] = Counter()
    interchangeable = 0
    waiting, under_way = list(range(len(sessions))), []
    while waiting or under_way:
        if waiting and (not under_way or rng.random() < 0.55):
            number = waiting.pop(rng.randrange(len(waiting)))
            index = next_turn[number]
            sent = client(sessions[number][: positions[number][index]], index)
            turn = bench.begin(chat(*sent))
            evidence[turn.evidence] += 1
            if index == 0:
                assert turn.session_id not in seen, "a first turn continued another session"
                assert turn.parent_id is None
            elif turn.session_id != named[number]:
                assert turn.session_id in seen, f"turn {index} of session {number} opened a session"
                other, other_turn = seen[turn.session_id]
                upto = positions[number][index - 1] + 1
                assert other_turn == index - 1
                assert sessions[other][:upto] == sessions[number][:upto]
                interchangeable += 1
                # From here on the two have changed places.
                named[other] = named[number]
            named[number] = turn.session_id
            seen[turn.session_id] = (number, index)
            under_way.append((number, turn))
        else:
            number, turn = under_way.pop(rng.randrange(len(under_way)))
            reply = sessions[number][positions[number][next_turn[number]]]
            bench.table.finish_turn(turn, replied(reply), None, "ok")
            next_turn[number] += 1
            if next_turn[number] < len(positions[number]):
                waiting.append(number)
            bench.clock.advance(0.1)
    bench.table.check_integrity()
    assert len(bench.table) == len(sessions)
    num_turns = sum(evidence.values())
    logger.info("%s: %d turns, %s, %d interchangeable", client.__name__, num_turns, dict(evidence), interchangeable)


def test_a_session_of_two_hundred_messages_takes_bytes_not_megabytes():
    bench = Bench()
    messages = generated_sessions(1, 100, seed=1)[0]
    turn = bench.serve(chat(*messages), assistant("x"))
    snapshot = bench.begin(chat(*messages, assistant("x"))).continues
    assert len(snapshot.digests) == DIGEST_BYTES * len(messages)
    assert bench.table.get(turn.session_id).num_messages == len(messages)
    assert bench.table.size_bytes < 100_000
