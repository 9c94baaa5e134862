"""An engine that somebody else runs: is it there, and what does it call its model?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp

from agentinfer.collab_lang.virtual_model.addresses import EngineAddress
from agentinfer.errors import ConfigError
from agentinfer.runtime.collab.command_lines import Elsewhere

_REQUEST_S = 10.0
_POLL_S = 1.0


async def found_elsewhere(engine: Elsewhere, say: Callable[[str], None], timeout_s: float = 60.0) -> EngineAddress:
    """Its address, once it has answered. Raises ConfigError where it says no, or nothing within `timeout_s`.

    With a model's name given it is not waited for: it may come later, as it may go.
    """
    deadline_s = time.monotonic() + timeout_s
    is_told = False
    while True:
        names, obstacle = await _served_names(engine)
        if names or engine.model is not None:
            if engine.model is not None and engine.model not in names:
                seen = f"serves {', '.join(names)}" if names else f"does not answer now ({obstacle})"
                say(f"the {engine.role} engine at {engine.base_url} {seen}; it will be asked for {engine.model}")
            return EngineAddress(engine.role, engine.base_url, engine.model or names[0], engine.api_key)
        if time.monotonic() >= deadline_s:
            raise ConfigError(
                f"--{engine.role}-base-url {engine.base_url}: no model to be found there: {obstacle}. Start that "
                f"server first, or give its model's name by --{engine.role}-served-model-name"
            )
        if not is_told:
            say(f"waiting for the {engine.role} engine at {engine.base_url}: {obstacle}")
            is_told = True
        await asyncio.sleep(_POLL_S)


async def _served_names(engine: Elsewhere) -> tuple[list[str], str]:
    headers = {} if engine.api_key is None else {"Authorization": f"Bearer {engine.api_key}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_REQUEST_S)) as http,
            http.get(f"{engine.base_url}/v1/models", headers=headers) as answer,
        ):
            if answer.status in (401, 403):
                raise ConfigError(
                    f"--{engine.role}-base-url {engine.base_url}: it answers {answer.status} to /v1/models. Its key is "
                    f"given by --{engine.role}-api-key"
                )
            if answer.status != 200:
                return [], f"it answers {answer.status} to /v1/models"
            body = await answer.json(content_type=None)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return [], str(error) or type(error).__name__
    models = body.get("data") if isinstance(body, dict) else None
    names = [str(each["id"]) for each in models or [] if isinstance(each, dict) and each.get("id")]
    return names, "it lists no model"
