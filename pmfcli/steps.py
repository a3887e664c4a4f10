"""A generator that yields steps and returns a result."""

from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

Step = TypeVar("Step")
Result = TypeVar("Result")


class Steps(Generic[Step, Result]):
    """The steps of a generator, to loop over once; then ``result`` is what it returned."""

    result: Result

    def __init__(self, generator: Generator[Step, None, Result]) -> None:
        self._generator = generator

    def __iter__(self) -> Iterator[Step]:
        self.result = yield from self._generator


def run(generator: Generator[Step, None, Result]) -> Result:
    """The result, without looking at the steps."""
    steps = Steps(generator)
    for _ in steps:
        pass
    return steps.result
