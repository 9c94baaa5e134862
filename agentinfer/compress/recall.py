"""The tool by which a model reads again what was taken out of its context: its definition, and the answer to a call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from agentinfer.compress.memory import Observation, parse_observation_id

RECALL: Final = "recall"
_MAX_LISTED: Final = 40


def recall_tool() -> dict[str, Any]:
    """The definition, as OpenAI's API takes it."""
    return {
        "type": "function",
        "function": {
            "name": RECALL,
            "description": "Read again the full text of an earlier tool result that now shows only its id.",
            "parameters": {
                "type": "object",
                "properties": {"id": {"type": "string", "description": "the id in the brackets, such as o12"}},
                "required": ["id"],
            },
        },
    }


def offering(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """A chat request with `recall` behind its own tools; the request itself where that would mean something else.

    That is where it has no tools (it asks for words), forbids them, has its own `recall`, or wants several replies.
    """
    tools = request.get("tools")
    if not isinstance(tools, list) or not tools or request.get("tool_choice") == "none":
        return request
    if request.get("n") not in (None, 1) or any(_name(tool) == RECALL for tool in tools):
        return request
    return {**request, "tools": [*tools, recall_tool()]}


def asked_id(arguments: str | Mapping[str, Any]) -> str:
    """The id in a call's arguments. Raises ValueError for a call that is not as the definition says."""
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    name = given.get("id") if isinstance(given, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(f'expected {{"id": "o12"}}, got {arguments!r:.200}')
    return name.strip().strip("[]")


def recalled(taken: Mapping[int, Observation], arguments: str | Mapping[str, Any]) -> str:
    """What a call is answered: the text as it was, or what is wrong with the call. Raises nothing."""
    try:
        return found(taken, asked_id(arguments))
    except KeyError as error:
        return f"recall: {error.args[0]}"
    except ValueError as error:
        return f"recall: {error}"


def found(taken: Mapping[int, Observation], observation: str) -> str:
    """The text of what has this id. Raises ValueError for what is no id, KeyError for an unknown one."""
    index = parse_observation_id(observation)
    if index not in taken:
        known = [taken[each].id for each in sorted(taken)]
        listed = ", ".join(known[-_MAX_LISTED:]) or "none"
        raise KeyError(f"{observation}: nothing of that id was taken out. Ids that were: {listed}")
    return taken[index].text


def _name(tool: object) -> object:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return function.get("name") if isinstance(function, Mapping) else None
