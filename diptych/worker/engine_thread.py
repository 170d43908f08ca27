"""The one thread that touches the engine: commands go in through a queue, step outcomes come out on the event loop.

A step computes for milliseconds to seconds, so it must not run on the loop; and one owner means the engine needs no
lock. Knows nothing about requests or roles.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from diptych.engine.engine import Engine
from diptych.engine.interface import ReadyBlocks, StepOutcome

Result = TypeVar("Result")


class EngineThread:
    """Made inside a running event loop, which is where outcomes arrive."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.stats = engine.stats()  # replaced whole after every step and command: safe to read from any thread

    def start(self, on_outcome: Callable[[StepOutcome], None], on_crash: Callable[[BaseException], None]) -> None:
        """
        Args:
            on_outcome: called on the loop after every step that produced something, and in the middle of one with the
                blocks that are ready.
            on_crash: called on the loop once if the engine raised; nothing is computed after that.
        """
        self._on_outcome, self._on_crash = on_outcome, on_crash
        self._engine.on_ready = self._hand_over_early
        self._thread.start()

    def now(self) -> float:
        """What requests' deadlines are compared with, in seconds; from any thread."""
        return self._engine.now()

    def post(self, command: Callable[[Engine], object]) -> None:
        """Run `command` between two steps; for commands that cannot fail. An exception in it is a crash."""
        self._commands.put(partial(command, self._engine))

    async def call(self, command: Callable[[Engine], Result]) -> Result:
        """Run `command` between two steps and return (or raise) what it did."""
        future: asyncio.Future[Result] = self._loop.create_future()

        def run() -> None:
            try:
                result = command(self._engine)
            except Exception as error:
                self._loop.call_soon_threadsafe(_fail, future, error)
            else:
                self._loop.call_soon_threadsafe(_resolve, future, result)

        self._commands.put(run)
        return await future

    def stop(self) -> None:
        """End the thread after the commands already posted; a step in progress completes."""
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._obey():
                outcome = self._engine.step()
                self.stats = self._engine.stats()
                if not outcome.idle:
                    self._loop.call_soon_threadsafe(self._hand_over, outcome)
        except BaseException as error:
            self._loop.call_soon_threadsafe(self._on_crash, error)

    def _hand_over_early(self, ready: list[ReadyBlocks]) -> None:
        """On the thread, in the middle of a step."""
        self._loop.call_soon_threadsafe(self._hand_over, StepOutcome(ready=ready))

    def _hand_over(self, outcome: StepOutcome) -> None:
        """On the loop. Whatever went wrong with an outcome, its tokens are lost: nobody may wait for them."""
        try:
            self._on_outcome(outcome)
        except Exception as error:
            self._on_crash(error)

    def _obey(self) -> bool:
        """Run every waiting command; while there is nothing to compute wait for one, or for a deadline. False: stop."""
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                if self._engine.has_work:
                    return True
                self.stats = self._engine.stats()  # commands change it too
                try:
                    command = self._commands.get(timeout=self._engine.next_deadline_s)
                except queue.Empty:
                    return True
            if command is None:
                self.stats = self._engine.stats()
                return False
            command()


def _resolve(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
