"""A GPU that computes nothing: tensors on "cuda" have shapes, types and a device, those on the CPU their real values.

Mixing devices fails as it does on a GPU. What makes a program wait for the GPU is counted in `waits`: copies to the
CPU, which bring zeros, and values that are read (`.item()`, `bool(...)`), which are 1. Gradients cannot be computed:
autograd asks the driver.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

needs_cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")

_COPY_TO = (torch.ops.aten._to_copy, torch.ops.aten.to)  # the latter as it is, under inference mode
_COPY_INTO = torch.ops.aten.copy_
_READ = (torch.ops.aten._local_scalar_dense, torch.ops.aten.item, torch.ops.aten.is_nonzero)


class WaitedForGpuError(AssertionError):
    """Something waited that may not."""


class FakeGpu(TorchDispatchMode):
    """While entered, there is a GPU; unless something `may_wait` for it, the first that does is an error."""

    def __init__(self, *, may_wait: bool = True) -> None:
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._may_wait = may_wait
        self.waits = 0

    def __enter__(self) -> "FakeGpu":
        self._fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._fake.__exit__(*failure)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(map(_is_on_gpu, tree_leaves((args, kwargs)))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in _COPY_TO and not _is_on_gpu(args[0]):
            # The fake mode itself would make this copy for real under inference mode.
            asked = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.dtype)]
            return torch.empty(args[0].shape, dtype=asked[0] if asked else args[0].dtype, device="cuda")
        if packet is _COPY_INTO and not _is_on_gpu(args[0]):
            if not (len(args) > 2 and args[2]):  # without blocking: whoever reads it waits for an event first
                self._wait(func)
            with unset_fake_temporarily():
                return args[0].zero_()
        if packet in _READ:
            self._wait(func)
            return 1.0 if args[0].dtype.is_floating_point else True
        result = func(*args, **kwargs)
        return tree_map_only(Tensor, lambda tensor: self._arrive(tensor, func), result)

    def _wait(self, func: Any) -> None:
        self.waits += 1
        if not self._may_wait:
            raise WaitedForGpuError(f"{func} waits for the GPU")

    def _arrive(self, tensor: Tensor, func: Any) -> Tensor:
        if _is_on_gpu(tensor):
            return tensor
        self._wait(func)
        with unset_fake_temporarily():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _is_on_gpu(value: Any) -> bool:
    if isinstance(value, Tensor):
        value = value.device
    return isinstance(value, torch.device) and value.type == "cuda"


def to_fake_gpu(network: nn.Module) -> nn.Module:
    """The network with weights that are on the GPU by name alone."""
    return network.to_empty(device="cuda")
