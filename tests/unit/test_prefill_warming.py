"""Computing a prompt ahead: the share of time that pieces take, their size, and what of a request is its prompt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from agentinfer.clock import ManualClock, SystemClock
from agentinfer.runtime.prefill.engine import Wanted, _stop_at_the_door, wanted_prompt
from agentinfer.runtime.prefill.warming import Pace, Stride, Warmed, WarmingError, warm
from agentinfer.runtime.turns import current_turn

# -- warming ----------------------------------------------------------------------------------------------------------


def paced(num_pieces: int, running: bool, end_turn_after_s: float | None = None) -> float:
    """Seconds that pieces of 10 ms take altogether, while a turn runs or not."""

    async def piece() -> int:
        await asyncio.sleep(0.01)
        return 10

    async def story() -> float:
        pace = Pace(SystemClock())
        if running:
            pace.turn_begun()
        if end_turn_after_s is not None:
            asyncio.get_running_loop().call_later(end_turn_after_s, pace.turn_finished)
        started_s = time.monotonic()
        for _ in range(num_pieces):
            await pace.run(piece)
        return time.monotonic() - started_s

    return asyncio.run(story())


def test_while_a_turn_runs_a_tenth_of_the_time_is_the_warmings() -> None:
    # Three pieces with two rests of nine times as long between them.
    assert paced(3, running=True) >= 3 * 0.01 + 2 * 9 * 0.01


def test_pieces_follow_each_other_while_no_turn_runs() -> None:
    assert paced(10, running=False) < 5 * 10 * 0.01


def test_the_end_of_the_last_turn_ends_the_rest() -> None:
    assert paced(2, running=True, end_turn_after_s=0.03) < 9 * 0.01


def test_one_piece_at_a_time_is_in_the_engine() -> None:
    inside, most = 0, 0

    async def piece() -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        return 0

    async def story() -> None:
        pace = Pace(ManualClock())
        await asyncio.gather(*(pace.run(piece) for _ in range(8)))

    asyncio.run(story())
    assert most == 1


def warmed_by(ids: Sequence[int], warmed: Warmed, cached: int = 0) -> list[int]:
    """The lengths of the pieces that put `ids` into a cache which has the first `cached` of them."""
    asked: list[int] = []

    async def compute(num_tokens: int) -> int:
        done = max([cached, len(warmed.ids), *asked])
        asked.append(num_tokens)
        return max(1, num_tokens - done)

    asyncio.run(warm(ids, warmed, Pace(ManualClock()), Stride(), compute))
    return asked


def test_a_prompt_is_computed_in_pieces_and_what_was_computed_is_left_out() -> None:
    warmed = Warmed()
    assert warmed_by(range(600), warmed) == [256, 512, 600]
    assert (warmed.computed_tokens, warmed.num_pieces) == (600, 3)
    # The next prompt of the job: the same but for its last ten tokens, and longer.
    assert warmed_by([*range(590), *range(900, 1000)], warmed) == [690]
    assert list(warmed.ids) == [*range(590), *range(900, 1000)]


def test_pieces_are_as_long_as_the_engine_computes_in_their_time() -> None:
    stride = Stride()
    stride.observe(256, took_s=0.2)
    assert stride.num_tokens == 128
    stride.observe(127, took_s=0.001)
    assert stride.num_tokens == 256, "twice as long at most"
    stride.observe(1, took_s=0.001)
    assert stride.num_tokens == 256, "what was cached says nothing of the speed"


def test_a_cache_without_room_ends_the_warming() -> None:
    async def compute(num_tokens: int) -> int:
        return num_tokens

    async def story() -> None:
        await warm(range(5000), Warmed(), Pace(ManualClock()), Stride(), compute)

    with pytest.raises(WarmingError, match="no room"):
        asyncio.run(story())


# -- the engine's door ------------------------------------------------------------------------------------------------


class Manager:
    """A tokenizer manager as far as the hook sees it."""

    class Tokenizer:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    tokenizer = Tokenizer()


class Request:
    def __init__(self, **fields: Any) -> None:
        self.input_ids: list[int] | None = None
        self.text = "abc"
        self.__dict__.update(fields)


def at_the_door(request: Request) -> Wanted:
    wanted = Wanted()
    token = wanted_prompt.set(wanted)
    try:
        with pytest.raises(ValueError, match="only the prompt"):
            _stop_at_the_door(lambda *_: None, Manager(), request)
    finally:
        wanted_prompt.reset(token)
    return wanted


def test_a_request_for_its_prompt_is_stopped_and_any_other_goes_on() -> None:
    wanted = at_the_door(Request(input_ids=[1, 2], lora_path="adapter", extra_key=None))
    assert wanted.prompt is not None
    assert (wanted.prompt.ids, wanted.prompt.identity) == ((1, 2), {"lora_path": "adapter"})
    assert _stop_at_the_door(lambda *arguments: len(arguments), Manager(), Request()) == 3


def test_a_prompt_of_more_than_text_is_not_warmed() -> None:
    wanted = at_the_door(Request(image_data=["i.png"]))
    assert (wanted.prompt, wanted.why_not) == (None, "the prompt has image_data")


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"input_ids": [1, 2]}, [1, 2]),
        ({"text": "abc"}, "abc"),
        ({"text": ["abc", "abd"]}, None),
        ({"input_ids": [[1, 2], [1, 3]]}, None),
        ({"image_data": ["i.png"]}, None),
    ],
    ids=["tokens", "text", "texts", "batch", "image"],
)
def test_what_a_turn_gives_the_engine_is_known_of_it(fields: dict[str, Any], prompt: Any) -> None:
    followed = SimpleNamespace(prompt=None)
    token = current_turn.set(followed)  # type: ignore[arg-type]
    try:
        _stop_at_the_door(lambda *_: None, Manager(), Request(**fields))
    finally:
        current_turn.reset(token)
    assert followed.prompt == prompt
