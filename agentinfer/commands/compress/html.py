"""A compressed session as one page: the client's history on the left, on the right what the model would have read.

The page needs nothing but itself. All texts are escaped: they come from tools and may say anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from agentinfer.commands.compress.sessions import SessionFigures, TurnFigures
from agentinfer.compress.composition import Composition
from agentinfer.compress.memory import observation_id
from agentinfer.messages.content import chat_message

_FOLDED_CHARS: Final = 1200
# What HTML may not hold, or a browser shows as nothing, such as the escapes of a terminal's colours: as their pictures.
_CONTROLS: Final = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --taken: #d9770633; --note: #2563eb33; --quiet: #888; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 110rem; }
table { border-collapse: collapse; }
td, th { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
h2 { margin-top: 2.5rem; } .quiet { color: var(--quiet); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; }
.pair > div { min-width: 0; } .pair > p { margin: .4rem 0 0; font-weight: 600; }
.message { border-left: 3px solid var(--line); padding: .1rem .6rem; margin: .3rem 0; }
.taken { border-left-color: #d97706; background: var(--taken); }
.note { border-left-color: #2563eb; background: var(--note); }
.role { font-size: .8rem; color: var(--quiet); } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; font: 12.5px/1.4 ui-monospace, monospace; }
@media (max-width: 60rem) { .pair { grid-template-columns: 1fr; } }
"""


def page(sessions: Sequence[SessionFigures], token_counts: str) -> str:
    """The whole document. `token_counts` says where the numbers of tokens come from."""
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>agentinfer compress</title><style>{_STYLE}</style></head><body>",
        "<h1>What AgentCompress would do</h1>",
        f"<p>Left, the client's history at the session's last turn. Right, what the model would have read: results "
        f"taken out show their id, and notes say what was in them. Tokens: {escape(token_counts)}.</p>",
        *(_session(session) for session in sessions),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _session(session: SessionFigures) -> str:
    last = session.turns[-1]
    active = last.outcome.active
    summary = (
        f"{len(session.turns)} turns, {session.swaps} swaps; last prompt {last.tokens_before:,} → "
        f"{last.tokens_after:,} tokens ({_share(last.tokens_before, last.tokens_after)}), all prompts "
        f"{session.tokens_before:,} → {session.tokens_after:,} ({_share(session.tokens_before, session.tokens_after)})"
    )
    rows = "".join(_turn_row(turn) for turn in session.turns if _has_event(turn))
    table = (
        "<table><tr><th>turn</th><th>tokens before</th><th>after</th><th>what happened</th></tr>" + rows + "</table>"
        if rows
        else '<p class="quiet">Nothing was worth compressing.</p>'
    )
    return (
        f"<h2>{escape(session.id)}</h2><p>{summary}</p>{table}"
        '<div class="pair"><p>The client\'s history</p><p>What the model reads</p></div>'
        + "".join(_pairs(last.outcome.prompt, active))
    )


def _share(before: int, after: int) -> str:
    return f"{100 * (after / before - 1):+.0f}%" if before else "0%"


def _has_event(turn: TurnFigures) -> bool:
    outcome = turn.outcome
    return turn.is_swap or outcome.started is not None or outcome.note is not None or bool(outcome.ended)


def _turn_row(turn: TurnFigures) -> str:
    outcome = turn.outcome
    said = []
    if turn.is_swap and turn.warm_share is not None:
        said.append(f"swapped, {100 * turn.warm_share:.1f}% of the prompt warm")
    if outcome.started is not None:
        taken = outcome.started.plan.taken
        said.append(f"job {outcome.started.job} started: {_named([each.id for each in taken])} taken out")
    if outcome.note is not None:
        said.append(f"note ready, lines: {len(outcome.note.lines())}")
    said += [f"job ended: {each.how} {each.why}".rstrip() for each in outcome.ended if each.how != "swapped"]
    cells = (str(turn.turn), f"{turn.tokens_before:,}", f"{turn.tokens_after:,}", "; ".join(said))
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"


def _pairs(history: Sequence[Mapping[str, Any]], active: Composition | None) -> list[str]:
    """A row a message of the history; a note is a row with nothing on its left."""
    composed = list(active.messages) if active is not None else []
    covers = active.covers if active is not None else 0
    texts = {note.text() for note in active.notes if not note.is_empty} if active is not None else set()
    rows = []
    place = 0
    for index, message in enumerate(history):
        while place < len(composed) and _is_note(composed[place], texts):
            rows.append(_row("", _message(composed[place], "note", "note")))
            place += 1
        is_taken = active is not None and index in active.taken
        name = f"{message.get('role', '')} · {observation_id(index)}" if is_taken else str(message.get("role", ""))
        left = _message(message, name, "taken" if is_taken else "", is_folded=is_taken)
        if index < covers and place < len(composed):
            right = _message(composed[place], name, "taken" if is_taken else "")
            place += 1
        else:
            right = _message(message, str(message.get("role", "")), "")
        rows.append(_row(left, right))
    rows += [_row("", _message(each, "note", "note")) for each in composed[place:]]
    return rows


def _is_note(message: Mapping[str, Any], texts: set[str]) -> bool:
    return message.get("role") == "assistant" and not message.get("tool_calls") and message.get("content") in texts


def _row(left: str, right: str) -> str:
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>\n'


def _message(message: Mapping[str, Any], name: str, kind: str, is_folded: bool = False) -> str:
    read = chat_message(message)
    parts = [part for part in (read.reasoning_text, read.text) if part]
    parts += [f"{call.name}({_arguments(call.arguments_text)})" for call in read.tool_calls]
    text = "\n".join(parts).translate(_CONTROLS)
    head = f'<span class="role">{escape(name)}</span>'
    if is_folded or len(text) > _FOLDED_CHARS:
        first = escape(text[:120].replace("\n", " "))
        shown = (
            f"<details><summary>{head} {first}… ({len(text):,} characters)</summary><pre>{escape(text)}</pre></details>"
        )
    else:
        shown = f"{head}<pre>{escape(text)}</pre>"
    return f'<div class="message {kind}">{shown}</div>'


def _arguments(text: str) -> str:
    """Line ends as such, so that a script in an argument can be read."""
    try:
        given = json.loads(text)
    except ValueError:
        return text
    if isinstance(given, dict) and len(given) == 1:
        value = next(iter(given.values()))
        return value if isinstance(value, str) else text
    return text
