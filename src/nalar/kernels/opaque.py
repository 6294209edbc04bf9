"""Operations that torch.compile calls as they stand, without looking inside."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")

_LIBRARY = torch.library.Library("nalar", "FRAGMENT")


def opaque(shapes: Callable[..., R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function of tensors and numbers that computes without gradient and returns new tensors.

    What a compiler cannot follow goes in here: sizes that depend on data, private kernels. shapes: takes
    the same arguments and returns empty tensors shaped as the results. Uncompiled code calls the
    function itself, so it costs nothing there.
    """

    def register(compute: Callable[P, R]) -> Callable[P, R]:
        name = compute.__name__.strip("_")
        schema = torch.library.infer_schema(compute, mutates_args=())
        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
        torch.library.register_fake(f"nalar::{name}", shapes, lib=_LIBRARY)
        op: Any = getattr(torch.ops.nalar, name)

        @functools.wraps(compute)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return op(*args, **kwargs)  # type: ignore[no-any-return]
            return compute(*args, **kwargs)

        return call

    return register


def apart(compute: Callable[P, R]) -> Callable[P, R]:
    """Decorates what compiled code steps out for, autograd and all: two programs where there was one.

    torch.compiler.disable would do, but loads the compilers, which takes a second, when a file is imported.
    """
    stepped_out = _disable_dynamo(compute)

    @functools.wraps(compute)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return stepped_out(*args, **kwargs)
        return compute(*args, **kwargs)

    return call
