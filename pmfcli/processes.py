"""Calls side by side, each in a process of its own, none of which is left behind."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pmfcli.errors import ProcessError

_AHEAD = 2  # calls that are made for each process: one waits while one runs
_ENDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def side_by_side(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """The results of a function for the arguments of each call, in order, ``workers`` at once. ``calls`` is read as needed.

    If one fails, or this process is interrupted, the others end.

    Raises:
        ProcessError: one was killed.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    started: deque[Future[Any]] = deque()
    try:
        for arguments in calls:
            with _deaf():  # else one that is just beginning would never hear what to do, or that it should end
                started.append(pool.submit(function, *arguments))
            if len(started) == _AHEAD * workers:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    except BaseException as error:
        for process in multiprocessing.active_children():  # of a broken pool, too: it misses one that was just beginning
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise ProcessError(f"one of {workers} processes was killed, perhaps for lack of memory; try fewer by -j") from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let this process end as soon as the one that it works for does, whatever ended that."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Signals that would end this process wait. Ctrl-C never comes to processes that begin meanwhile: this one ends them.

    A mask alone would not do: a signal to the process then goes to another thread, and Python hears it in this one.
    """
    handlers = {number: handler for number in _ENDS if callable(handler := signal.getsignal(number))}
    came: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came[:1]:
            handlers[number](number, None)
