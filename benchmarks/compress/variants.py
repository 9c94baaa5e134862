"""Ways to keep an agent's context short, each as what it would have sent at every turn of a recorded session."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agentinfer.compress.composition import Composition
from agentinfer.compress.distiller import Assignment
from agentinfer.compress.memory import Observation, observation_id
from agentinfer.compress.note import Note
from agentinfer.compress.offline import Exchange, Notes, TurnOutcome, compress_session
from agentinfer.compress.settings import Settings
from agentinfer.messages.content import chat_message

OpenAIMessage = Mapping[str, Any]
Messages = tuple[OpenAIMessage, ...]
CountTokens = Callable[[Sequence[OpenAIMessage]], int]

VARIANTS: Final = {
    "none": "the client's whole history",
    "ours": "results only",
    "ours_payloads": "and long texts in the arguments of old calls",
    "without_reasoning": "only the note stands for what was compressed",
    "without_note": "the ids stay, the note does not",
    "without_recent": "the last steps' results go too",
    "truncate": "oldest steps dropped, to the size of ours at its swaps",
    "clear_results": "old results cleared at the same threshold, no note, no ids",
    "synchronous": "ours, but the agent waits for note and prefill",
}
_ID: Final = re.compile(r"\[(o\d{1,6})[\]:]")
_CLEARED: Final = "[Old tool result cleared]"


@dataclass(frozen=True, slots=True)
class SentTurn:
    """A turn's prompt. `prefilled` are contexts computed in the background behind it.

    `is_swap`: the context's beginning was changed before this turn. `distilled` is what a distiller had to read for
    that, and `waited` whether the agent waited for it. `recallable` are results that the prompt names by id.
    """

    sent: Messages = field(repr=False)
    is_swap: bool = False
    prefilled: tuple[Messages, ...] = field(default=(), repr=False)
    distilled: Assignment | None = field(default=None, repr=False)
    waited: bool = False
    recallable: tuple[Observation, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Played:
    """One session under all variants. `notes` are those of `ours`, each with what it was made from."""

    turns: dict[str, list[SentTurn]]
    notes: list[tuple[Note, Assignment]]


def play(exchanges: Sequence[Exchange], notes: Notes, settings: Settings, count: CountTokens) -> Played:
    """`count` counts the tokens of a prompt."""
    at_once = replace(settings, warm_share=0.0)
    ours = compress_session(exchanges, notes, settings, 1, count)
    payloads = compress_session(exchanges, notes, replace(settings, take_payloads=True), 1, count)
    no_recent = compress_session(exchanges, notes, replace(settings, keep_recent_steps=0), 1, count)
    cleared = compress_session(exchanges, _placeholder, at_once, 0, count)
    synchronous = compress_session(exchanges, notes, at_once, 0, count)
    turns = {
        "none": [SentTurn(each.prompt) for each in exchanges],
        "ours": _viewed(ours, _as_is),
        "ours_payloads": _viewed(payloads, _as_is),
        "without_reasoning": _viewed(ours, _notes_only),
        "without_note": _viewed(ours, _without_notes),
        "without_recent": _viewed(no_recent, _as_is),
        "truncate": _truncated(exchanges, ours, count),
        "clear_results": _in_the_way(_viewed(cleared, _cleared), waits=False),
        "synchronous": _in_the_way(_viewed(synchronous, _as_is), waits=True),
    }
    assert turns.keys() == VARIANTS.keys()
    return Played(turns, _notes_of(ours))


def _notes_of(outcomes: Iterable[TurnOutcome]) -> list[tuple[Note, Assignment]]:
    found = []
    assignment = None
    for outcome in outcomes:
        assignment = outcome.started.assignment if outcome.started is not None else assignment
        if outcome.note is not None and assignment is not None:
            found.append((outcome.note, assignment))
    return found


def _viewed(outcomes: Sequence[TurnOutcome], view: Callable[[Composition], Messages]) -> list[SentTurn]:
    """The turns with another form of each composition; forms are as stable as compositions are."""
    known: dict[bytes, Messages] = {}
    named: dict[bytes, tuple[Observation, ...]] = {}
    found = []
    working: Assignment | None = None
    pending: Assignment | None = None
    for outcome in outcomes:
        active = outcome.active
        beginning: Messages = ()
        if active is not None:
            if active.digest not in known:
                known[active.digest] = view(active)
            beginning = known[active.digest]
            if active.digest not in named:
                named[active.digest] = _named(beginning, active.taken)
        rest = outcome.prompt[active.covers :] if active is not None else outcome.prompt
        found.append(
            SentTurn(
                sent=(*beginning, *rest),
                is_swap=outcome.is_swap,
                prefilled=_viewed_prefills(outcome, outcomes, view, known),
                distilled=pending if outcome.is_swap else None,
                recallable=named[active.digest] if active is not None else (),
            )
        )
        working = outcome.started.assignment if outcome.started is not None else working
        pending = working if outcome.note is not None else pending
    return found


def _viewed_prefills(
    outcome: TurnOutcome,
    outcomes: Sequence[TurnOutcome],
    view: Callable[[Composition], Messages],
    known: dict[bytes, Messages],
) -> tuple[Messages, ...]:
    """The background's contexts in the same form: those of the composition that swaps next."""
    if view is _as_is or not outcome.warmed:
        return tuple(outcome.warmed)
    following = next((each.active for each in outcomes[outcome.index + 1 :] if each.is_swap), None)
    if following is None:
        return tuple(outcome.warmed)
    if following.digest not in known:
        known[following.digest] = view(following)
    beginning = known[following.digest]
    return tuple((*beginning, *messages[len(following.messages) :]) for messages in outcome.warmed)


def _in_the_way(turns: Iterable[SentTurn], waits: bool) -> list[SentTurn]:
    """Nothing is prefilled in the background; `waits` for a note as well."""
    return [
        replace(turn, prefilled=(), waited=turn.is_swap and waits, distilled=turn.distilled if waits else None)
        for turn in turns
    ]


def _truncated(exchanges: Sequence[Exchange], ours: Sequence[TurnOutcome], count: CountTokens) -> list[SentTurn]:
    found = []
    begin: int | None = None
    for exchange, outcome in zip(exchanges, ours, strict=True):
        prompt = exchange.prompt
        head = next((index for index, each in enumerate(prompt) if each["role"] == "assistant"), len(prompt))
        if outcome.is_swap:
            size = count(outcome.sent)
            begin = head if begin is None else begin
            starts = [index for index in range(begin, len(prompt)) if prompt[index]["role"] == "assistant"]
            # The last step stays: the model is to answer it.
            begin = next((start for start in starts if count((*prompt[:head], *prompt[start:])) <= size), starts[-1])
        sent = prompt if begin is None else (*prompt[:head], *prompt[begin:])
        found.append(SentTurn(sent, is_swap=outcome.is_swap))
    return found


def _placeholder(assignment: Assignment) -> Note:
    return Note(next_step=_CLEARED)  # a job with an empty note ends; `_cleared` takes this out


def _as_is(composition: Composition) -> Messages:
    return composition.messages


def _without_notes(composition: Composition) -> Messages:
    notes = {note.text() for note in composition.notes}
    return tuple(each for each in composition.messages if not _is_note(each, notes))


def _notes_only(composition: Composition) -> Messages:
    """Instructions, what persons said, and the notes; steps are gone."""
    notes = {note.text() for note in composition.notes}
    steps = ("assistant", "tool")
    return tuple(each for each in composition.messages if each["role"] not in steps or _is_note(each, notes))


def _cleared(composition: Composition) -> Messages:
    names = {f"[{observation_id(index)}]" for index in composition.taken}
    return tuple(
        {**each, "content": _CLEARED} if each["role"] == "tool" and each.get("content") in names else each
        for each in _without_notes(composition)
    )


def _is_note(message: OpenAIMessage, notes: Collection[str]) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls") and message.get("content") in notes


def _named(messages: Messages, taken: Mapping[int, Observation]) -> tuple[Observation, ...]:
    """Of what was taken, what the prompt names."""
    by_id = {each.id: each for each in taken.values()}
    shown: set[str] = set()
    for message in messages:
        read = chat_message(message)
        for text in (read.text, *(call.arguments_text for call in read.tool_calls)):
            shown.update(name for name in _ID.findall(text) if name in by_id)
    return tuple(by_id[name] for name in sorted(shown))
