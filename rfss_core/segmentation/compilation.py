"""``torch.compile`` for the parts of the engine that are many small operations."""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rfss_core.errors import SettingsError
from rfss_core.segmentation.adapter import Sam2Adapter
from rfss_core.segmentation.attention import MemoryAttention

# The compiler's own state is shared by all threads of a process.
_COMPILING = threading.RLock()
# Every shape gets its own code, so that results do not depend on which shapes came before; they are few.
_SHAPES = 64


def check_compiler(device: torch.device) -> None:
    """Make sure that compiled code can be built for a device.

    Raises:
        SettingsError: no C++ compiler, or, for CUDA, no Triton.
    """
    remedy = "or set segmentation.compile to false"
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    if not any(shutil.which(name) for name in names):
        raise SettingsError(f"segmentation.compile needs a C++ compiler: install g++, point CXX at one, {remedy}")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise SettingsError(f"segmentation.compile on CUDA needs Triton: pip install triton, {remedy}")


def compile_parts(adapter: Sam2Adapter, attention: MemoryAttention) -> None:
    """Compile the image encoder and the memory attention's parts between its attention kernels, in place.

    Compilation itself waits for the first call with each shape of input, and lasts from seconds to minutes.

    Raises:
        SettingsError: see :func:`check_compiler`.
    """
    check_compiler(adapter.device)
    for owner, name in ((adapter.image_encoder, "forward"), *attention.hot_parts()):
        setattr(owner, name, CompiledFunction(getattr(owner, name), adapter.device))


class CompiledFunction:
    """A compiled function that several lanes may call at once.

    The first call with each signature, which compiles, runs while no other one does. On a CPU the code is compiled for
    one thread, whatever thread compiles it, as lanes need it (see lanes.py).

    Args:
        function: of tensors and of objects that hold weights.
        device: where it runs.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        options: dict[str, Any] | None = {"cpp.threads": 1} if device.type == "cpu" else None
        self._compiled = torch.compile(function, dynamic=False, options=options)
        self._ready: set[tuple[Any, ...]] = set()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function."""
        signature = tuple(_describe(argument) for argument in (*arguments, *named.values()))
        if signature in self._ready:
            return self._compiled(*arguments, **named)
        with _COMPILING, torch._dynamo.config.patch(recompile_limit=_SHAPES):  # noqa: SLF001
            result = self._compiled(*arguments, **named)
            self._ready.add(signature)
        return result


def _describe(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return (tuple(argument.shape), argument.stride(), argument.dtype)
    return id(argument)
