"""Learning rates over time."""

import math


def learning_rate_at(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    schedule: str,
    total_steps: int,
    final_fraction: float = 0.0,
) -> float:
    """The learning rate that step 0, 1, ... uses.

    Args:
        step: from 0.
        peak: the rate after warm-up.
        warmup_steps: step i of them uses peak * (i + 1) / warmup_steps.
        schedule: "constant", or "cosine": from `peak` at the first step after warm-up to the final rate at the last.
        total_steps: how many there are.
        final_fraction: where a cosine ends, as a fraction of `peak`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return peak * (final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))))
