"""Whether a step counts: decided on the device, read once the answer has come, so that the device need not pause."""

import torch
from torch import Tensor


class Verdict:
    """How many values of a step are not finite, by kind and over all processes.

    Attributes:
        is_bad: 0-d float32 on the device, 1 where there is such a value, else 0.
        is_pending: whether reading may still have to wait for the device.
    """

    def __init__(self, counts: Tensor) -> None:
        """`counts`: (number of kinds,) float32, on the device."""
        self.is_bad = counts.sum().clamp(max=1.0)
        self.is_pending = counts.is_cuda
        if self.is_pending:
            self._counts = torch.empty(counts.shape, pin_memory=torch.cuda.is_available())
            self._counts.copy_(counts, non_blocking=True)
            self._has_come = torch.cuda.Event()
            self._has_come.record()
        else:
            self._counts = counts.cpu()

    def read(self) -> list[float]:
        """The counts; waits until the device has computed this step, whatever it was given since."""
        if self.is_pending:
            self._has_come.synchronize()
            self.is_pending = False
        return self._counts.tolist()


@torch.no_grad()
def step_unless(is_bad: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """A step of a fused optimiser that changes nothing where `is_bad` is 1, by the way that GradScaler takes."""
    optimiser.found_inf = is_bad  # type: ignore[attr-defined]
    try:
        optimiser.step()
    finally:
        del optimiser.found_inf  # type: ignore[attr-defined]


def keep_unless_good(is_bad: Tensor, before: list[tuple[Tensor, Tensor]]) -> None:
    """Give tensors, each with its value from before, that value back where `is_bad` is 1."""
    for tensor, value in before:
        tensor.copy_(torch.where(is_bad > 0, value, tensor))


@torch.no_grad()
def spoil_if(is_bad: Tensor, gradient: Tensor) -> None:
    """Make a gradient NaN where `is_bad` is 1, for a GradScaler to leave the step out."""
    gradient.add_(torch.where(is_bad > 0, torch.nan, 0.0))
