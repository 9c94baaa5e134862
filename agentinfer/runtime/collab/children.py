"""An engine as a child process: started, its lines shown, waited for, started again when it dies, and ended.

The child is a `keeper`, which ends when nothing of the engine is left; then its port and its memory are free again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from agentinfer.collab_lang.virtual_model.addresses import Role
from agentinfer.errors import AgentInferError
from agentinfer.runtime.collab.keeper import AT_ONCE

_KEEPER: Final = (sys.executable, "-m", "agentinfer.runtime.collab.keeper")
_LINE_END = re.compile(rb"\r\n|\n|\r")

# Our launcher's last line, and what its watch over SGLang's processes says when one of them dies.
_OWN_WORD = re.compile(r"agentinfer: (?:error: (.+)|(.+ (?:died|failed) .+))")

# SGLang looks for free ports some seconds before it binds them; another process may take one in between.
_PORT_TAKEN = ("EADDRINUSE", "ddress already in use")


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. A restart waits `first_backoff_s`, then twice as long each time up to `longest_backoff_s`; an engine
    that was up for `stable_s` begins anew. `grace_s`: what an engine that is asked to end has before it is killed.
    """

    poll_s: float = 0.5
    health_timeout_s: float = 10.0
    notice_s: float = 60.0
    first_backoff_s: float = 1.0
    longest_backoff_s: float = 30.0
    stable_s: float = 60.0
    grace_s: float = 20.0
    port_tries: int = 3

    def backoff_s(self, failures: int) -> float:
        """Before the next start, after `failures` (at least 1) in a row."""
        return float(min(self.longest_backoff_s, self.first_backoff_s * 2 ** min(failures - 1, 30)))


class EngineEnded(AgentInferError):
    """An engine ended before it was ready. `status` is its exit status; `reason` its last word on it."""

    def __init__(self, role: Role, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(f"the {role} engine ended with {described(status)} before it was ready: {reason}")


def described(status: int) -> str:
    """A keeper's exit status in words."""
    if status <= 128:
        return f"status {status}"
    try:
        return f"status {status} (killed by {signal.Signals(status - 128).name})"
    except ValueError:
        return f"status {status}"


class Child:
    """One engine's process, owned by one event loop that runs in the main thread (a keeper ends with that thread).

    `command` gives the command line anew for each start, since the memory that is free may have changed. Engines that
    share `starting` start one after the other, at restarts too.
    """

    def __init__(
        self,
        role: Role,
        command: Callable[[], Awaitable[Sequence[str]]],
        environ: Mapping[str, str],
        base_url: str,
        say: Callable[[str], None],
        patience: Patience | None = None,
        starting: asyncio.Lock | None = None,
    ) -> None:
        self.role = role
        self.base_url = base_url
        self.num_restarts = 0
        self._command = command
        self._environ = {**environ, "PYTHONUNBUFFERED": "1"}
        self._say = say
        self._patience = patience or Patience()
        self._starting = starting or asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        self._recent: deque[str] = deque(maxlen=60)

    async def launch(self) -> None:
        """The first start; returns when the engine is ready. Raises EngineEnded where it cannot be started."""
        for tries_left in reversed(range(self._patience.port_tries)):
            try:
                await self._start_and_wait()
            except EngineEnded:
                if not tries_left or not any(words in line for line in self._recent for words in _PORT_TAKEN):
                    raise
                self._say(f"the {self.role} engine lost a port to another process, trying again")
            else:
                return

    async def keep(self) -> None:
        """Until cancelled: starts the engine again whenever it ends."""
        failures = 0
        ready_at_s = time.monotonic()
        while True:
            status = await self._ended()
            failures = 1 if time.monotonic() - ready_at_s >= self._patience.stable_s else failures + 1
            delay_s = self._patience.backoff_s(failures)
            reason = self._own_word()
            said = f": {reason.rstrip('.')}" if reason else ""
            self._say(
                f"the {self.role} engine ended with {described(status)}{said}. It is started again in {delay_s:g} s"
            )
            await asyncio.sleep(delay_s)
            self.num_restarts += 1
            try:
                await self._start_and_wait()
            except EngineEnded:
                continue  # the next round says so
            except AgentInferError as error:
                self._say(f"the {self.role} engine cannot be started now: {error}")
                continue
            ready_at_s = time.monotonic()
            self._say(f"the {self.role} engine is back, at {self.base_url}")

    async def stop(self) -> None:
        """Ends the engine, at the latest by force after the grace time; nothing of it is left afterwards."""
        process = self._process
        if process is None:
            return
        for sent, wait_s in ((signal.SIGTERM, self._patience.grace_s), (AT_ONCE, 60.0), (signal.SIGKILL, 10.0)):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(sent)
            try:
                await asyncio.wait_for(process.wait(), wait_s)
                break
            except TimeoutError:
                continue
        await self._drained()

    def kill(self) -> None:
        """Ends the engine now; `stop` waits for it."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(AT_ONCE)

    async def _start_and_wait(self) -> None:
        async with self._starting:
            await self._start(await self._command())
            await self._ready()

    async def _start(self, command: Sequence[str]) -> None:
        await self._drained()
        self._recent.clear()
        self._process = await asyncio.create_subprocess_exec(
            *_KEEPER,
            str(os.getpid()),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ,
            # Ctrl-C in a terminal is for the supervisor, which ends its engines in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._output = asyncio.create_task(self._show(self._process.stdout))

    async def _ready(self) -> None:
        started_s = noticed_s = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(self._patience.health_timeout_s)) as http:
            while not await self._is_healthy(http):
                assert self._process is not None
                with contextlib.suppress(TimeoutError):
                    status = await asyncio.wait_for(self._process.wait(), self._patience.poll_s)
                    await self._drained()
                    raise EngineEnded(self.role, status, self._last_word())
                if time.monotonic() - noticed_s >= self._patience.notice_s:
                    noticed_s = time.monotonic()
                    self._say(f"the {self.role} engine is still starting, after {noticed_s - started_s:.0f} s")

    async def _is_healthy(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(f"{self.base_url}/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def _ended(self) -> int:
        assert self._process is not None
        status = await self._process.wait()
        await self._drained()
        return status

    async def _drained(self) -> None:
        if self._output is not None:
            output, self._output = self._output, None
            try:
                await asyncio.wait_for(output, 5.0)
            except TimeoutError:  # something beyond the keeper's reach holds the pipe
                self._say(f"a process of the {self.role} engine was left over and still has its output")

    async def _show(self, stream: asyncio.StreamReader) -> None:
        rest = b""
        while piece := await stream.read(65_536):
            *lines, rest = _LINE_END.split(rest + piece)
            self._show_lines(lines)
        self._show_lines([rest])

    def _show_lines(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            if text:
                self._recent.append(text)
                show(f"[{self.role}] {text}")

    def _own_word(self) -> str | None:
        """What the launcher said of its end, or None where it was killed before it could."""
        own = [match[1] or match[2] for line in self._recent if (match := _OWN_WORD.match(line))]
        return own[-1] if own else None

    def _last_word(self) -> str:
        return self._own_word() or (self._recent[-1] if self._recent else "it said nothing")


def show(line: str) -> None:
    """A line on standard output; lost where nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
