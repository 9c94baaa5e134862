"""One engine as the virtual model sees it: requests to it, whether it is up, and how busy its turns keep it.

A connection that fails or breaks is the engine's loss (`EngineLost`), never the turn's: it goes on elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp

from agentinfer.clock import Clock
from agentinfer.collab_lang.controller import Model
from agentinfer.collab_lang.virtual_model.addresses import EngineAddress
from agentinfer.collab_lang.virtual_model.busy_share import BusyShare

_CONNECT_S: Final = 5.0
# Shorter than servers keep an idle connection, so that a request rarely meets one that is being closed.
_KEEP_ALIVE_S: Final = 3.0
_BROKEN: Final = (aiohttp.ClientError, OSError)


class EngineLost(Exception):
    """The engine gave no answer, or no whole one; `str()` says how that showed."""


class EngineFailed(Exception):
    """The engine answers, and cannot serve this request; `status` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Answer:
    """An engine's answer, of which the head is there. Reading raises EngineLost where the rest does not come."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "application/json")

    @property
    def is_failure(self) -> bool:
        """The engine's own failure rather than the request's fault."""
        return self.status >= 500

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except _BROKEN as error:
            raise EngineLost(_told(error)) from error

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes of the body as they arrive."""
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except _BROKEN as error:
            raise EngineLost(_told(error)) from error


class Engine:
    """Lives on one event loop; `start` before anything else, `close` in the end."""

    def __init__(self, address: EngineAddress, clock: Clock) -> None:
        self.address = address
        self.role = Model(address.role)
        self.is_up = True
        # Known once it has answered: whether it takes our hints, and computes prompts ahead when asked.
        self.is_ours = False
        self.prefills_ahead = True
        # Whether it says what it had cached: ours do, others once they did.
        self.reports_cache = False
        self.busy = BusyShare(clock)
        self.doubted = asyncio.Event()
        self.down_reason = ""
        # By when they began.
        self._deadlines: dict[asyncio.Timeout, float] = {}
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        key = self.address.api_key
        self._http = aiohttp.ClientSession(
            headers={"Accept-Encoding": "identity"} | ({} if key is None else {"Authorization": f"Bearer {key}"}),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            read_bufsize=1 << 18,
        )

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        is_turn: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Answer]:
        """Ask, and read the answer inside the block; leaving it early aborts the request in the engine.

        `path` with its query. `is_turn` counts the engine as busy with a turn. Raises EngineLost, also when the engine
        is found to be down meanwhile; TimeoutError after `timeout_s`.
        """
        if is_turn:
            self.busy.begin()
        deadline = asyncio.timeout(timeout_s)
        begun_s = asyncio.get_running_loop().time()
        ends_at_s = None if timeout_s is None else begun_s + timeout_s
        try:
            async with deadline:
                self._deadlines[deadline] = begun_s
                response = await self._ask(method, path, body, headers or {})
                try:
                    yield Answer(response)
                finally:
                    # An answer that was read to its end has given its connection back; any other is cut here.
                    response.close()
        except TimeoutError:
            if ends_at_s is not None and asyncio.get_running_loop().time() >= ends_at_s:
                raise
            raise EngineLost(self.down_reason or "it does not answer any more") from None
        finally:
            self._deadlines.pop(deadline, None)
            if is_turn:
                self.busy.end()

    def doubt(self, reason: str) -> None:
        """A request found the engine lost: no turn goes there until it was asked whether it lives, which is now."""
        self.is_up = False
        self.down_reason = reason
        self.doubted.set()

    def found_down(self, reason: str, asked_s: float) -> None:
        """It did not live when it was asked, at `asked_s` of the loop's time: who had waited for it then is let go."""
        self.is_up = False
        self.down_reason = reason
        now_s = asyncio.get_running_loop().time()
        for deadline in [each for each, begun_s in self._deadlines.items() if begun_s <= asked_s]:
            del self._deadlines[deadline]
            if not deadline.expired():
                deadline.reschedule(now_s)

    def found_up(self) -> None:
        self.is_up = True
        self.down_reason = ""

    def status(self) -> dict[str, Any]:
        state: dict[str, Any] = {"is_up": self.is_up, "model": self.address.model, "base_url": self.address.base_url}
        state |= {"turns_running": self.busy.num_working, "busy_share": round(self.busy.share, 3)}
        return state | ({"down_reason": self.down_reason} if self.down_reason else {})

    async def _ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        assert self._http is not None, "the engine was not started"
        url = self.address.base_url + path
        try:
            try:
                return await self._http.request(method, url, data=body, headers=headers)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                # Most likely a kept connection that the server had just closed; a dead engine refuses the next one.
                return await self._http.request(method, url, data=body, headers=headers)
        except _BROKEN as error:
            raise EngineLost(_told(error)) from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
