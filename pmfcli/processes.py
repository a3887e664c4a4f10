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


def side_by_side(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """What a function gives for the arguments of each call, in order, so many at once. Calls are asked for as they are made.

    If one fails, or this process is interrupted, the others end.

    Raises:
        ProcessError: one was killed.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    started: deque[Future[Any]] = deque()
    try:
        for arguments in calls:
            with _deaf_to_interrupts():  # as are the processes that begin here: it is this one that ends them
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
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C waits; and never comes to processes and threads that begin meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
