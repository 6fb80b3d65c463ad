"""torch.compile around networks: when it repays the time it takes, and what becomes of it where it cannot be done."""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dcae_core.errors import ResourceError, is_out_of_memory, printable

CompileMode = Literal["auto", "always", "never"]
COMPILE_MODES: tuple[str, ...] = get_args(CompileMode)

BACKEND: str | Callable[..., Any] = "inductor"
"""Of torch.compile."""

REPAYING_CALLS = 3000
"""Compiling takes about a minute: this many calls of 60 ms repay it if each saves a third. Not measured on a GPU."""

_OLDEST_FOR_TRITON = (7, 0)  # compute capability of the GPU

_log = logging.getLogger(__name__)


def repays_compiling(device: torch.device, num_calls: float, mode: CompileMode = "auto") -> bool:
    """Whether a run of so many calls of one shape should compile its network.

    A rule, not a measurement, so that the same command computes in the same way each time. With "auto" that is: on
    CUDA, where triton and the GPU allow it, from `REPAYING_CALLS` on; never on a CPU, where no gain was measured that
    outlasts the minute (docs/performance.md).
    """
    if mode != "auto":
        return mode == "always"
    return device.type == "cuda" and num_calls >= REPAYING_CALLS and _can_compile(device)


def _can_compile(device: torch.device) -> bool:
    has_triton = importlib.util.find_spec("triton") is not None
    return has_triton and torch.cuda.get_device_capability(device) >= _OLDEST_FOR_TRITON


class Compiled(nn.Module):
    """A network in evaluation mode that runs compiled, with one recording for each shape of its inputs.

    What a call returns may be kept: it is a copy of what the next call overwrites. The first call says that it
    takes a while. Where compiling fails, "auto" says so and goes on with the network as it is; otherwise ResourceError.
    """

    def __init__(self, network: nn.Module, mode: CompileMode = "always") -> None:
        super().__init__()
        self.network = network
        self._may_go_without = mode == "auto"
        self._has_begun = False
        recorded = "reduce-overhead" if BACKEND == "inductor" else None
        self._compiled: Callable[..., Tensor] | None = torch.compile(
            network, fullgraph=True, dynamic=False, backend=BACKEND, mode=recorded
        )

    @classmethod
    def of(cls, network: nn.Module, mode: CompileMode) -> nn.Module:
        """A network compiled, unless it already is."""
        if isinstance(network, Compiled) or network._compiled_call_impl is not None:
            return network
        return cls(network, mode)

    def forward(self, *inputs: Tensor | int | None) -> Tensor:
        """As the network's own."""
        if self._compiled is None:
            return self.network(*inputs)
        if not self._has_begun:
            _log.warning("compiling %s, which takes about a minute", type(self.network).__name__)
            self._has_begun = True
        torch.compiler.cudagraph_mark_step_begin()
        try:
            with explained_compilation():
                return self._compiled(*inputs).clone()
        except ResourceError as error:
            if not self._may_go_without:
                raise
            _log.warning("%s; going on without", error)
            self._compiled = None
            return self.network(*inputs)


@contextmanager
def explained_compilation() -> Iterator[None]:
    """Within it, a network that cannot be compiled here is a ResourceError."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        if is_out_of_memory(error):
            raise
        reason = printable(" ".join(str(error).split("\n")[:2]))
        raise ResourceError(f"torch.compile fails here ({reason}); `--compile never` goes without") from error
