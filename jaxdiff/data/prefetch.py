"""Background prefetch: items computed by a thread, ahead of their use."""

import itertools
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

import jax
import numpy as np

from jaxdiff.data.spec import DataError

__all__ = ["T", "ahead", "grouped"]


T = TypeVar("T")


def ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the items of an iterator, which a thread computes up to ``depth`` ahead.

    Close it when done (``contextlib.closing``); an error of the iterator is raised where its item was due.

    Args:
        items: used up by the thread alone from now on.
        depth: items that may wait, >= 1.

    Raises:
        DataError: depth < 1.
    """
    if depth < 1:
        raise DataError(f"depth must be at least 1, got {depth}")
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop, end = threading.Event(), StopIteration()

    def put(entry: tuple[T | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return waiting.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((None, end))
        except BaseException as error:  # raised again where the item was due
            put((None, error))

    thread = threading.Thread(target=work, name="jaxdiff-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is end:
                return
            if error is not None:
                raise error
            yield item  # pyright: ignore[reportReturnType] (None only with an error)
    finally:
        stop.set()
        thread.join()


def grouped(batches: Iterator[T], size: int) -> Iterator[T]:
    """Stack every ``size`` batches along a new first axis, on the host; with 1 they stay as they are.

    Args:
        batches: trees of host arrays.
        size: how many, >= 1; an incomplete last group is dropped.
    """
    if size == 1:
        yield from batches
        return
    while len(group := list(itertools.islice(batches, size))) == size:
        yield jax.tree.map(lambda *leaves: np.stack(leaves), *group)
