"""Tool results of bfcl-eval tasks: the task's own simulated environment runs the call, as the benchmark does.

The environments (file system, tickets, trading ...) are plain Python classes without network or disk. Where one cannot
be loaded or raises, the result is a plain sentence built from the call, so that a session always has one.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

_PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
_MODULES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
_STATELESS = {"MathAPI"}


class Environments:
    """The instances one task works on; calls change them, so results depend on the calls before."""

    def __init__(self, class_names: Sequence[str], initial_config: Mapping[str, Any], long_context: bool) -> None:
        self._instances = [
            instance
            for name in class_names
            if (instance := _instance(name, initial_config.get(name, {}), long_context)) is not None
        ]

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The tool's result as text. Never raises: an environment's error is a result, as in the benchmark."""
        for instance in self._instances:
            method = None if name.startswith("_") else getattr(instance, name, None)
            if callable(method):
                try:
                    return _as_text(method(**arguments))
                except Exception as error:  # the environments raise what they like
                    return f"Error during execution: {error}"
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"{name}({shown}) done."


def _instance(class_name: str, config: Mapping[str, Any], long_context: bool) -> Any | None:
    try:
        module = importlib.import_module(f"{_PACKAGE}.{_MODULES[class_name]}")
        state = random.getstate()
        try:
            # Some environments draw ids from the global generator; a trace must be the same at every reading.
            random.seed(0)
            instance = getattr(module, class_name)()
            if class_name not in _STATELESS:
                instance._load_scenario(copy.deepcopy(config), long_context=long_context)
        finally:
            random.setstate(state)
    except Exception as error:  # a missing dependency of one environment must not lose the other tasks
        logger.warning("bfcl: %s cannot be loaded (%s); its results are made from the calls", class_name, error)
        return None
    return instance


def _as_text(result: object) -> str:
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result) if isinstance(result, dict) else str(result)
    except (TypeError, ValueError):
        return str(result)
