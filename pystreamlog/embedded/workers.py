"""The workers of `Consumer.process`: threads, or tasks of an event loop, that take the next record themselves.

A worker calls the handler, tries again what failed, and does with what keeps failing what `on_failure` says. It knows
nothing of the consumer: it takes tasks from `Work`, and `Work` wakes the consumer's driver.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from pystreamlog.backend.processing import ProcessConfig
from pystreamlog.embedded.dead_letters import DeadLetters
from pystreamlog.embedded.work import Stage, Task, Work
from pystreamlog.errors import ConfigError, SerdeError
from pystreamlog.record.record import Record

if TYPE_CHECKING:
    # Costs 30 ms of import, which only those pay who use it.
    import asyncio

__all__ = ["Tasks", "Threads", "Workers", "log_second"]

_log = logging.getLogger("pystreamlog")

Handler = Callable[[Record[Any, Any]], object]

_TURN_SECONDS = 0.001
"""How long tasks that await nothing may keep the event loop."""


def log_second(error: BaseException | None) -> None:
    """Log an error that is not raised, as another one is."""
    if error is not None:
        _log.error("a second error while processing ended", exc_info=error)


class Workers:
    """What both kinds have in common.

    Args:
        work: Where tasks come from.
        handler: What is called with each record.
        config: How often it is tried, and what becomes of what fails.
        dead_letters: Where that goes, if it goes there.
    """

    def __init__(self, work: Work, handler: Handler, config: ProcessConfig, dead_letters: DeadLetters | None) -> None:
        self._work = work
        self._handler = handler
        self._config = config
        self._dead_letters = dead_letters

    def call(self, count: int) -> None:
        """So many tasks became ready; with the work's lock held."""
        raise NotImplementedError

    def stop(self, error: BaseException) -> None:
        """Have everything end with this error."""
        with self._work.lock:
            log_second(self._work.stop(error))
            self.call(self._config.workers)

    def _matters(self, task: Task) -> bool:
        """Whether it still matters how a task ends: else it is not tried again, nor dead-lettered or skipped."""
        return not task.part.is_gone and self._work.stage is not Stage.HALTED

    def _is_worth_a_try(self, task: Task) -> bool:
        """Whether to try again after a pause; at the end nobody waits for that, and the record is read again later."""
        return not task.part.is_gone and self._work.stage is Stage.RUNNING

    def _is_retried(self, error: Exception, failures: int) -> bool:
        return failures <= self._config.retries and not isinstance(error, _NotAwaitedError)

    def _settle(self, task: Task, error: BaseException) -> bool | None:
        """What becomes of a record that failed for good; None when it is to be dead-lettered."""
        if not self._matters(task):
            return False
        if isinstance(error, _NotAwaitedError):
            self.stop(error)
            return False
        if self._dead_letters is not None:
            return None
        if self._config.on_failure == "skip":
            topic, partition = task.part.tp
            _log.error(
                "skipping the record at offset %d of partition %d of topic %r, which nobody could handle",
                task.offset,
                partition,
                topic,
                exc_info=error,
            )
            return True
        topic, partition = task.part.tp
        error.add_note(f"while handling the record at offset {task.offset} of partition {partition} of topic {topic!r}")
        self.stop(error)
        return False


class Threads(Workers):
    """Workers that are threads.

    Args:
        work: Where tasks come from.
        handler: What is called with each record.
        config: How often it is tried, and what becomes of what fails.
        dead_letters: Where that goes, if it goes there.
    """

    def __init__(self, work: Work, handler: Handler, config: ProcessConfig, dead_letters: DeadLetters | None) -> None:
        super().__init__(work, handler, config, dead_letters)
        self._threads: list[threading.Thread] = []
        self._idle = threading.Condition(work.lock)
        self._idle_count = 0
        self._ending = threading.Event()

    def start(self) -> None:
        """Start them."""
        for number in range(self._config.workers):
            thread = threading.Thread(target=self._run, name=f"pystreamlog-process-{number}", daemon=False)
            self._threads.append(thread)
            thread.start()

    def call(self, count: int) -> None:
        """See `Workers.call`."""
        if self._work.stage is not Stage.RUNNING:
            self._ending.set()
        if self._idle_count:
            self._idle.notify(count)

    def dismiss(self) -> None:
        """End those that wait; the others end when their handler does."""
        with self._work.lock:
            self._work.closed = True
            self._idle.notify_all()
        self._ending.set()

    def close(self) -> None:
        """The same, and wait for the others."""
        self.dismiss()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _next(self, done: Task | None, finished: bool) -> Task | None:  # noqa: FBT001 - called for each record
        """End a task and begin the next, under one lock; None when there will be none."""
        work = self._work
        with work.lock:
            if done is not None:
                work.end(done, finished=finished)
            while (task := work.begin()) is None and not work.closed:
                self._idle_count += 1
                try:
                    self._idle.wait()
                finally:
                    self._idle_count -= 1
            return task

    def _run(self) -> None:
        following, handler = self._next, self._handler
        task = following(None, False)
        while task is not None:
            try:
                if task.record is None:
                    finished = self._fail(task, task.source)
                else:
                    if (answer := handler(task.record)) is not None:
                        _check_answer(answer)
                    finished = True
            except Exception as error:  # noqa: BLE001 - whatever a user's handler raises
                finished = self._fail(task, error)
            except BaseException as error:  # noqa: BLE001 - raised by `process`
                self.stop(error)
                finished = False
            task = following(task, finished)

    def _call_handler(self, record: Record[Any, Any]) -> None:
        if (answer := self._handler(record)) is not None:
            _check_answer(answer)

    def _fail(self, task: Task, error: Any) -> bool:
        """The first attempt failed: whether the record counts as finished in the end."""
        record, failures = task.record, 1
        try:
            while self._is_retried(error, failures) and record is not None and self._matters(task):
                self._ending.wait(self._config.backoff(failures))
                if not self._is_worth_a_try(task):
                    return False
                try:
                    self._call_handler(record)
                except Exception as another:  # noqa: BLE001 - whatever a user's handler raises
                    error = another
                    failures += 1
                else:
                    return True
            finished = self._settle(task, error)
            if finished is None:
                finished = self._bury(task, error)
        except BaseException as failure:  # noqa: BLE001 - raised by `process`
            self.stop(failure)
            return False
        return finished

    def _bury(self, task: Task, error: BaseException) -> bool:
        assert self._dead_letters is not None
        try:
            self._dead_letters.send(task, error).result()
        except Exception as failure:
            raise failure from error
        return True


class _NotAwaitedError(ConfigError):
    """A thread got an awaitable, which another attempt would return too."""


def _check_answer(answer: object) -> None:
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise _NotAwaitedError("the handler returned an awaitable: pass it to process_async(), which awaits it")


class Tasks(Workers):
    """Workers that are tasks of the running event loop.

    Args:
        work: Where tasks come from.
        handler: What is called with each record; what it returns is awaited if it can be.
        config: How often it is tried, and what becomes of what fails.
        dead_letters: Where that goes, if it goes there.
    """

    def __init__(self, work: Work, handler: Handler, config: ProcessConfig, dead_letters: DeadLetters | None) -> None:
        import asyncio  # noqa: PLC0415 - only for those who use it

        super().__init__(work, handler, config, dead_letters)
        self._tasks: list[asyncio.Task[None]] = []
        self._idle: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        self._cancelled = False
        self._turn_ends = 0.0

    def start(self) -> None:
        """Start them."""
        self._tasks = [
            self._loop.create_task(self._run(), name=f"pystreamlog-process-{number}")
            for number in range(self._config.workers)
        ]

    def call(self, count: int) -> None:
        """See `Workers.call`."""
        if self._work.stage is not Stage.RUNNING:
            self._ending.set()
        while count > 0 and self._idle:
            future = self._idle.popleft()
            if not future.done():
                future.set_result(None)
                count -= 1

    def cancel(self) -> None:
        """Cancel the handlers that run."""
        self._cancelled = True
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """End those that wait, and await the others."""
        import asyncio  # noqa: PLC0415 - only for those who use it

        with self._work.lock:
            self._work.closed = True
            self.call(len(self._tasks))
        self._ending.set()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _exchange(self, done: Task, *, finished: bool) -> Task | None:
        """End a task and begin the next, if there is one."""
        with self._work.lock:
            self._work.end(done, finished=finished)
            return None if self._cancelled else self._work.begin()

    async def _next(self) -> Task | None:
        """Await the next task; None when there will be none."""
        work = self._work
        while not work.closed and not self._cancelled:
            with work.lock:
                task = work.begin()
            if task is not None:
                return task
            future = self._loop.create_future()
            self._idle.append(future)
            await future
        return None

    async def _run(self) -> None:
        from asyncio import CancelledError, sleep  # noqa: PLC0415 - only for those who use it

        try:
            while (task := await self._next()) is not None:
                while task is not None:
                    finished = False
                    try:
                        finished = await self._handle(task)
                        if (now := monotonic()) >= self._turn_ends:
                            await sleep(0)
                            self._turn_ends = now + _TURN_SECONDS
                    except CancelledError as error:
                        self._stop_unless_cancelled(error)
                    task = self._exchange(task, finished=finished)
        except CancelledError as error:
            self._stop_unless_cancelled(error)

    def _stop_unless_cancelled(self, error: BaseException) -> None:
        """Somebody else than the driver cancels: a handler itself, or whoever ends all tasks of the loop."""
        if not self._cancelled:
            self.stop(error)

    async def _handle(self, task: Task) -> bool:
        """Whether the record counts as finished in the end."""
        from asyncio import CancelledError  # noqa: PLC0415 - only for those who use it

        failures = 0
        try:
            while True:
                if task.record is None:
                    assert isinstance(task.source, SerdeError)
                    error: Exception = task.source
                    break
                try:
                    answer = self._handler(task.record)
                    if answer is not None and inspect.isawaitable(answer):
                        await answer
                except Exception as raised:  # noqa: BLE001 - whatever a user's handler raises
                    error = raised
                else:
                    return True
                failures += 1
                if not self._is_retried(error, failures) or not self._matters(task):
                    break
                await self._pause(self._config.backoff(failures))
                if not self._is_worth_a_try(task):
                    return False
            finished = self._settle(task, error)
            if finished is None:
                assert self._dead_letters is not None
                await self._bury(task, error)
                finished = True
        except CancelledError:
            raise
        except BaseException as failure:  # noqa: BLE001 - raised by `process_async`
            self.stop(failure)
            return False
        return finished

    async def _pause(self, seconds: float) -> None:
        """Wait, but for no end."""
        from asyncio import timeout  # noqa: PLC0415 - only for those who use it

        try:
            async with timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            pass

    async def _bury(self, task: Task, error: BaseException) -> None:
        assert self._dead_letters is not None
        try:
            await self._dead_letters.send(task, error)
        except Exception as failure:
            raise failure from error
