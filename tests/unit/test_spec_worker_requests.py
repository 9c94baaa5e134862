"""The drafter's view of the engine's requests: each token told once, whatever scheduling does; every request closed."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agentinfer.runtime.speculation.ending import num_kept
from agentinfer.runtime.speculation.requests import RequestBook


class FINISH_ABORT:
    """Named as upstream's: the book knows an aborted request by it."""


class FINISH_LENGTH:
    pass


class Request:
    def __init__(self, rid: str, prompt: list[int], **fields: Any) -> None:
        self.rid = rid
        self.origin_input_ids = prompt
        self.output_ids: list[int] = []
        self.session_id = None
        self.extra_key = None
        self.finished_reason = None
        self.sampling_params = SimpleNamespace(custom_params=None)
        vars(self).update(fields)

    @property
    def output_ids_through_stop(self) -> list[int]:
        return self.output_ids[: getattr(self, "finished_len", None)]


@dataclass
class RecordingDrafter:
    """Remembers what it was told of each request, and how each was opened and closed."""

    text: dict[str, list[int]] = field(default_factory=dict)
    opened: list[tuple[str, str | None, str | None, str]] = field(default_factory=list)
    closed: list[tuple[str, bool]] = field(default_factory=list)

    def open(self, request_id: str, prompt: np.ndarray, *, session: Any, parent: Any, namespace: str) -> None:
        assert prompt.dtype == np.int32
        self.text[request_id] = prompt.tolist()
        self.opened.append((request_id, session, parent, namespace))

    def draft(self, request_ids: list[str], new_tokens: np.ndarray, offsets: np.ndarray, max_width: int) -> Any:
        assert new_tokens.dtype == np.int32
        assert (offsets.dtype, len(offsets)) == (np.int64, len(request_ids) + 1)
        for i, request_id in enumerate(request_ids):
            self.text[request_id] += new_tokens[offsets[i] : offsets[i + 1]].tolist()
        return (tuple(request_ids), max_width)

    def close(self, request_id: str, *, finished: bool) -> None:
        self.closed.append((request_id, finished))


@pytest.fixture
def drafter() -> RecordingDrafter:
    return RecordingDrafter()


@pytest.fixture
def book(drafter: RecordingDrafter) -> RequestBook:
    return RequestBook(drafter)


def test_each_output_token_is_told_once(book: RequestBook, drafter: RecordingDrafter) -> None:
    request = Request("a", [1, 2, 3])
    book.enter([request])
    for output in ([4], [4, 5, 6], [4, 5, 6], [4, 5, 6, 7]):
        request.output_ids = output
        assert book.draft([request], None, 16) == (("a",), 16)
    assert drafter.text["a"] == [1, 2, 3, 4, 5, 6, 7]


def test_tokens_ahead_of_the_output_are_told_once_and_not_again_when_they_are_in_it(
    book: RequestBook, drafter: RecordingDrafter
) -> None:
    request = Request("a", [1])
    book.enter([request])
    for output, ahead in (([], [2]), ([2], [3, 4]), ([2, 3, 4], [5]), ([2, 3, 4, 5], [])):
        request.output_ids = output
        book.draft([request], [ahead], 16)
    assert drafter.text["a"] == [1, 2, 3, 4, 5]


def test_batch_members_may_come_and_go(book: RequestBook, drafter: RecordingDrafter) -> None:
    first, second = Request("a", [1]), Request("b", [2])
    book.enter([first])
    first.output_ids = [10]
    book.draft([first], None, 4)
    second.output_ids = [20]
    first.output_ids = [10, 11]
    book.enter([second])
    assert book.draft([second, first], None, 4)[0] == ("b", "a")
    assert drafter.text == {"a": [1, 10, 11], "b": [2, 20]}


def test_retracted_request_comes_back_without_being_told_twice(book: RequestBook, drafter: RecordingDrafter) -> None:
    request = Request("a", [1])
    book.enter([request])
    request.output_ids = [2, 3]
    book.draft([request], None, 4)
    book.enter([request])  # prefilled again, prompt and output
    request.output_ids = [2, 3, 4]
    book.draft([request], None, 4)
    assert drafter.text["a"] == [1, 2, 3, 4]
    assert len(drafter.opened) == 1


def test_finished_reply_is_told_up_to_its_end_and_remembered(book: RequestBook, drafter: RecordingDrafter) -> None:
    request = Request("a", [1])
    book.enter([request])
    request.output_ids, request.finished_reason, request.finished_len = [2, 3, 4, 5], FINISH_LENGTH(), 3
    book.finish("a")
    assert drafter.text["a"] == [1, 2, 3, 4]
    assert drafter.closed == [("a", True)]
    book.finish("a")
    assert len(drafter.closed) == 1


def test_aborted_reply_is_not_remembered(book: RequestBook, drafter: RecordingDrafter) -> None:
    request = Request("a", [1])
    book.enter([request])
    request.output_ids, request.finished_reason = [2], FINISH_ABORT()
    book.finish("a")
    assert drafter.closed == [("a", False)]
    assert drafter.text["a"] == [1]


def test_request_that_vanishes_is_closed_and_its_name_is_free_again(
    book: RequestBook, drafter: RecordingDrafter
) -> None:
    request = Request("a", [1])
    book.enter([request])
    del request
    gc.collect()
    again = Request("a", [9])
    book.enter([again])
    assert drafter.closed == [("a", False)]
    assert [name for name, *_ in drafter.opened] == ["a", "a"]
    assert book.num_open == 1


def test_session_parent_and_tenant_reach_the_drafter(book: RequestBook, drafter: RecordingDrafter) -> None:
    hints = {"agentinfer": {"session": "s-2", "parent": "s-1"}}
    requests = [
        Request("hinted", [1], sampling_params=SimpleNamespace(custom_params=hints), extra_key="tenant"),
        Request("by id", [1], session_id="s-3"),
        Request("nobody's", [1]),
    ]
    book.enter(requests)
    assert drafter.opened == [
        ("hinted", "s-2", "s-1", "tenant"),
        ("by id", "s-3", None, ""),
        ("nobody's", None, None, ""),
    ]


class Letters:
    """A tokenizer of one letter a token."""

    eos_token_id = 0
    additional_stop_token_ids = (1,)

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(token) for token in tokens)


def ending_request(text: str, **sampling: Any) -> Any:
    known = {
        "max_new_tokens": 100,
        "ignore_eos": False,
        "stop_token_ids": None,
        "stop_strs": [],
        "stop_regex_strs": [],
        "stop_str_max_len": max(map(len, sampling.get("stop_strs", [])), default=0),
        "stop_regex_max_len": 20 if sampling.get("stop_regex_strs") else 0,
    }
    return Request(
        "a",
        [1],
        output_ids=[ord(letter) for letter in text],
        tokenizer=Letters(),
        eos_token_ids={2},
        sampling_params=SimpleNamespace(**{**known, **sampling}),
    )


@pytest.mark.parametrize(
    ("before", "sampling", "new", "kept"),
    [
        ("", {}, "abc", 3),
        ("xy", {"max_new_tokens": 4}, "abc", 2),
        ("xy", {"max_new_tokens": 2}, "abc", 1),
        ("", {}, "ab\x00c", 3),
        ("", {}, "a\x01bc", 2),
        ("", {}, "a\x02bc", 2),
        ("", {"stop_token_ids": {ord("b")}}, "abc", 2),
        ("", {"ignore_eos": True, "stop_token_ids": {ord("b")}}, "a\x00bc", 4),
        ("", {"ignore_eos": True, "max_new_tokens": 2}, "a\x00bc", 2),
        ("nea", {"stop_strs": ["ear"]}, "rly", 1),
        ("", {"stop_strs": ["bc"]}, "abcd", 3),
        ("", {"stop_strs": ["bc"]}, "ab\x00cbc", 3),
        ("", {"stop_regex_strs": ["b+c"]}, "abbcd", 4),
        ("", {"stop_strs": ["zz"]}, "abcd", 4),
    ],
    ids=[
        "no end",
        "length",
        "length reached",
        "end of text",
        "further end of the tokenizer",
        "end of the model",
        "stop token",
        "ends ignored",
        "ends ignored, length not",
        "stop string across steps",
        "stop string within",
        "end before stop string",
        "stop pattern",
        "stop string absent",
    ],
)
def test_reply_keeps_tokens_up_to_its_first_end(before: str, sampling: dict[str, Any], new: str, kept: int) -> None:
    assert num_kept(ending_request(before, **sampling), [ord(letter) for letter in new]) == kept
