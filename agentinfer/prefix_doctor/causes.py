"""The reasons for which a prefix is computed again, and what to do about each."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Cause(StrEnum):
    """Why tokens that could have been cached were not. `HIT` and `FIRST_TURN` are no misses."""

    HIT = "hit"
    FIRST_TURN = "first_turn"
    SYSTEM_CHANGED = "system_changed"
    TOOLS_CHANGED = "tools_changed"
    MESSAGE_EDITED = "message_edited"
    MESSAGE_REMOVED = "message_removed"
    TOOL_CALL_RESERIALISED = "tool_call_reserialised"
    REPLY_EDITED = "reply_edited"
    EVICTED = "evicted"
    TOKENISATION = "tokenisation"


ADVICE: Final = {
    Cause.SYSTEM_CHANGED: "Keep the system message the same in every turn of a session.",
    Cause.TOOLS_CHANGED: "Send the same tools in the same order in every turn of a session.",
    Cause.MESSAGE_EDITED: "Append messages instead of editing those already sent.",
    Cause.MESSAGE_REMOVED: "Remove old messages seldom and many at once; each removal computes all that follows again.",
    Cause.TOOL_CALL_RESERIALISED: "Send tool call arguments back as the exact string of the reply.",
    Cause.REPLY_EDITED: "Send the reply back exactly as it was received.",
    Cause.EVICTED: "The cache needed the room: run fewer sessions at once or give the cache more memory.",
    Cause.TOKENISATION: "The reply tokenises differently when it is sent back; only its own tokens are affected.",
}
