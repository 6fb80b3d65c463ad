"""What samplers share: the types of what they call, and the checks and tensors they start with."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dcae_core.errors import UsageError

Model = Callable[[Tensor, Tensor], Tensor]
"""model(x, t): x (B, C, H, W), t a 0-d tensor on x's device -> a prediction of x's shape (or with 2C channels)."""

Progress = Callable[[int, int], None]
"""progress(step, total), called after each step with step = 1..total."""

StepNoise = Callable[[int], Tensor] | Sequence[Tensor] | Tensor
"""The noise of each step, of x's shape: step_noise(step) or step_noise[step], step = 0, 1, ... from the noisiest."""


def require_steps(num_steps: int, minimum: int = 1, maximum: int | None = None) -> None:
    """Refuse a number of steps that the sampler cannot take.

    Raises:
        UsageError: it is below `minimum` or above `maximum`.
    """
    if num_steps < minimum:
        raise UsageError(f"this sampler needs at least {minimum} step{'s' * (minimum > 1)}, not {num_steps}")
    if maximum is not None and num_steps > maximum:
        raise UsageError(f"this sampler takes at most {maximum} steps, not {num_steps}")


def times_like(times: Sequence[float], x: Tensor) -> Tensor:
    """All times of a loop on x's device, sent at once so that the loop never waits: float32, or x's own float64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.tensor(times, dtype=dtype, device=x.device)


def draw_step_noise(step_noise: StepNoise | None, step: int, like: Tensor) -> Tensor:
    """The noise of one step on `like`'s device; from PyTorch's global generator where none is given."""
    if step_noise is None:
        return torch.randn_like(like)
    noise = step_noise(step) if callable(step_noise) else step_noise[step]
    return noise.to(like)
