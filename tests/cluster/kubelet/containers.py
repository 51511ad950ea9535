"""One container of a pod: started, probed, stopped, started again, and what is known of it."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.cluster.kubelet import probes
from tests.cluster.kubelet.box import Box, joining
from tests.cluster.kubelet.environment import Launch
from tests.cluster.objects import Json, timestamp

# A kubelet begins with 10 s and goes up to 300; a test would not see the second start.
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.3, 5.0


@dataclass
class Container:
    """Its state is what `status` says; `changed` is called at each change of it."""

    spec: Json
    address: str
    log: Path
    changed: Callable[[], None]
    is_ready: bool = False
    is_started: bool = False
    restarts: int = 0
    state: Json = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: Json = field(default_factory=dict)
    exit_code: int | None = None
    _process: asyncio.subprocess.Process | None = None
    _launch: Launch | None = None
    _is_stopping: bool = False

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    def status(self) -> Json:
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "",
            "ready": self.is_ready,
            "started": self.is_started,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last_state,
        }

    def wait_for(self, reason: str, message: str) -> None:
        """Say why it has not started."""
        self._set({"waiting": {"reason": reason, "message": message}})

    def _set(self, state: Json) -> None:
        if state != self.state:
            self.state = state
            self.changed()

    async def run(self, box: Box, launch: Launch) -> int:
        """Run the container once, with its probes; its exit code."""
        self._launch, self.exit_code = launch, None
        # The log of this start alone, as `kubectl logs` shows it; the one before is kept.
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".previous"))
        await self._spawn(box, launch)
        try:
            code = await self._accompany(box)
        finally:
            self.is_ready = self.is_started = False
            await self._bury()
        self.exit_code = 128 - code if code < 0 else code
        reason = "Completed" if self.exit_code == 0 else "Error"
        began = self.state.get("running", {}).get("startedAt")
        ended = {"startedAt": began, "finishedAt": timestamp()}
        self._set({"terminated": {"exitCode": self.exit_code, "reason": reason, **ended}})
        return self.exit_code

    async def _spawn(self, box: Box, launch: Launch) -> None:
        with self.log.open("wb") as output:
            spawning = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    *box.command(launch),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            )
            try:
                self._process = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                self._process = await spawning
                await self._bury()
                raise

    async def _accompany(self, box: Box) -> int:
        """Wait until the box is ready, then probe it until its process has ended."""
        assert self._process is not None
        while not box.begun.exists() and self._process.returncode is None:
            await asyncio.sleep(0.01)
        self._set({"running": {"startedAt": timestamp()}})
        probing = asyncio.create_task(self._probe())
        try:
            return await self._process.wait()
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)

    async def _bury(self) -> None:
        """Leave nothing of the box."""
        self._kill()
        if self._process is not None:
            await self._process.wait()

    async def keep(self, box: Box, make: Callable[[], Launch], policy: str) -> None:
        """Run the container as often as its policy wants, with longer and longer breaks."""
        pause_s = _BACKOFF_S
        while True:
            began_s = time.monotonic()
            code = await self.run(box, make())
            if self._is_stopping or policy == "Never" or (policy == "OnFailure" and code == 0):
                return
            if time.monotonic() - began_s > 10 * _LONGEST_BACKOFF_S:
                pause_s = _BACKOFF_S
            self.last_state = self.state
            self.wait_for("CrashLoopBackOff", f"back-off {pause_s:g} s restarting {self.name}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_BACKOFF_S)
            self.restarts += 1

    def pid(self) -> int | None:
        """Process 1 of the box, by its number outside."""
        if self._process is None or self._process.returncode is not None:
            return None
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        try:
            children = path.read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    async def execute(self, words: list[str], timeout_s: float) -> int | None:
        """Run a command beside the container; None where it took too long or could not."""
        pid = self.pid()
        if pid is None or self._launch is None:
            return None
        launch = replace(self._launch, words=tuple(words))
        with self.log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *joining(pid, launch), stdout=output, stderr=output, start_new_session=True
            )
        try:
            async with asyncio.timeout(timeout_s):
                return await process.wait()
        except TimeoutError:
            return None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def _probe(self) -> None:
        """Ask the probes: start first, then life and readiness side by side."""
        start = self.spec.get("startupProbe")
        if start is not None and not await probes.until_met(start, self):
            self._kill()
            return
        self.is_started = True
        ready, life = self.spec.get("readinessProbe"), self.spec.get("livenessProbe")
        if ready is None:
            self.is_ready = True
        self.changed()
        async with asyncio.TaskGroup() as group:
            if ready is not None:
                group.create_task(probes.follow(ready, self, self._set_ready))
            if life is not None:
                group.create_task(probes.follow(life, self, self._set_alive))

    def _set_ready(self, is_met: bool) -> None:
        if is_met != self.is_ready:
            self.is_ready = is_met
            self.changed()

    def _set_alive(self, is_met: bool) -> None:
        if not is_met:
            self._signal(signal.SIGTERM)
            asyncio.get_running_loop().call_later(1.0, self._kill)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _kill(self) -> None:
        """End the box with everything in it."""
        if self._process is not None and self._process.returncode is None:
            # It may have ended and been reaped a moment before asyncio tells its exit code.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """preStop, SIGTERM, and SIGKILL when the time is over."""
        self._is_stopping = True
        end_s = time.monotonic() + grace_s
        hook = ((self.spec.get("lifecycle") or {}).get("preStop") or {}).get("exec")
        if hook is not None and grace_s:
            await self.execute(hook["command"], grace_s)
        self._signal(signal.SIGTERM)
        while self.pid() is not None and time.monotonic() < end_s:
            await asyncio.sleep(0.05)
        self._kill()
