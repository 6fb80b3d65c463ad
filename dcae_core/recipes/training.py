"""Settings that every training recipe has: optimiser, schedule, averaging, precision, stopping and looking."""

from typing import Annotated, Literal

from pydantic import Field

from dcae_core.recipes.number_types import ComputingType
from dcae_core.recipes.section import Section

_LARGEST = (1 << 63) - 1  # what PyTorch can take for a size or a seed
Positive = Annotated[int, Field(ge=1, le=_LARGEST)]
NonNegative = Annotated[int, Field(ge=0, le=_LARGEST)]
NumWorkers = Annotated[int, Field(ge=0, le=1024)]
PositiveNumber = Annotated[float, Field(gt=0)]
NonNegativeNumber = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class OptimiserSettings(Section):
    """AdamW and its learning rate over time."""

    learning_rate: PositiveNumber
    """The rate after warm-up."""
    weight_decay: NonNegativeNumber = 0.0
    """AdamW's decoupled weight decay. Biases and norms are exempt."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """AdamW's decay rates of the gradient's mean and of its square."""
    epsilon: PositiveNumber = 1e-8
    """AdamW's term against division by zero."""
    warmup_steps: NonNegative = 0
    """The rate grows linearly over this many steps."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant, or half a cosine down to `final_fraction` at the last step."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where a cosine ends, as a fraction of `learning_rate`."""
    clip_gradient_norm: PositiveNumber | None = None
    """Scale gradients down to this norm where theirs is larger."""


class EmaSettings(Section):
    """The moving average of the weights, which is what is validated and saved at the end."""

    decay: Fraction = 0.9999
    """How much of the average stays at each step."""
    warmup_steps: NonNegative = 2000
    """The decay at step s is decay * (1 - exp(-s / warmup_steps)); 0 switches this off."""


class ExecutionSettings(Section):
    """How the same mathematics is computed: speed and memory, not results beyond rounding."""

    precision: ComputingType = "fp32"
    """Number type of matrix products and convolutions (autocast); weights and averages stay float32."""
    compile: bool = False
    """Use torch.compile: minutes at the start, faster steps."""
    channels_last: bool = False
    """Keep pictures in memory as NHWC, which tensor cores prefer."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: a whole copy of the network in each (ddp), or a part of it (fsdp)."""


class CheckpointSettings(Section):
    """When the whole state is saved, and what is kept."""

    every: Positive = 1000
    """Steps between checkpoints; there is also one at the end of each phase and when the run is stopped."""
    keep: Positive = 2
    """How many of the newest stay; older ones are removed once a newer one is complete."""
    keep_every: Positive | None = None
    """Steps whose multiples stay for good."""


class LoggingSettings(Section):
    """What the run says about itself beside `metrics.jsonl`."""

    every: Positive = 10
    """Steps between lines of `metrics.jsonl`."""
    tensorboard: bool = False
    """Also write TensorBoard events to `run_dir/tensorboard` (extra `tensorboard`)."""
    wandb_project: str | None = None
    """Also log to this Weights & Biases project (extra `wandb`)."""
