"""Nested tuples of tensors and numbers as plain values, which a file can hold, and back."""

from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor

Tree = Any  # of tuples, lists, dicts, tensors, numbers, texts and None
T = TypeVar("T")


def plain(value: Any) -> Tree:
    """The same with named tuples as tuples, and tensors detached."""
    if isinstance(value, tuple | list):
        return tuple(plain(part) for part in value)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return value.detach() if isinstance(value, Tensor) else value


def like(template: T, value: Tree) -> T:
    """A plain value with the types of a template, and its devices.

    Raises:
        ValueError: it is of another shape.
    """
    if isinstance(template, tuple):
        if not isinstance(value, tuple) or len(value) != len(template):
            raise ValueError("not what it should be")
        parts = [like(*pair) for pair in zip(template, value, strict=True)]
        return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)  # type: ignore[return-value]
    if isinstance(template, Tensor):
        if not isinstance(value, Tensor) or value.shape != template.shape or value.dtype != template.dtype:
            raise ValueError("not what it should be")
        return value.to(template.device)  # type: ignore[return-value]
    if type(value) is not type(template):
        raise ValueError("not what it should be")
    return value


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from leaves(part)
