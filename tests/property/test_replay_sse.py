"""Events come out the same however the network cuts the stream."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agentinfer.messages.sse import EventDecoder

payloads = st.lists(
    st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), min_size=1, max_size=3),
    max_size=5,
)


@given(payloads, st.sampled_from([b"\n", b"\r\n"]), st.lists(st.integers(0, 400), max_size=12))
def test_events_do_not_depend_on_the_cuts(events: list[list[bytes]], line_end: bytes, cuts: list[int]) -> None:
    lines_of = [[b": keep-alive", b"event: x", *(b"data: " + d for d in data), b""] for data in events]
    stream = b"".join(line + line_end for lines in lines_of for line in lines)
    decoder = EventDecoder()
    edges = [0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]
    found = [e for begin, end in itertools.pairwise(edges) for e in decoder.feed(stream[begin:end])]
    assert found == [b"\n".join(lines) for lines in events]


def test_an_event_is_out_as_soon_as_its_blank_line_is_in() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b'data: {"a": 1}\n') == []
    assert decoder.feed(b"\ndata: ") == [b'{"a": 1}']
