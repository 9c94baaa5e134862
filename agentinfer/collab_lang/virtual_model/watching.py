"""Working for a client as long as it is there: when it leaves, what is done for it is broken off.

aiohttp tells a handler of a client that left only where the server was started so; this does not depend on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from aiohttp import web

_LOOK_EVERY_S: Final = 0.25

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


async def while_connected(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves (ClientGone) or this is cancelled."""
    task = asyncio.ensure_future(work)
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=_LOOK_EVERY_S)
            if done:
                return task.result()
            if request.transport is None or request.transport.is_closing():
                raise ClientGone
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
