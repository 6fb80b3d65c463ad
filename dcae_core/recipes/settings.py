"""Sections that several recipes share."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A group of settings: no unknown keys, no silent conversion between types, no change after reading."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Recipe(Section):
    """The top of a recipe."""

    command: str
    """The command that this recipe is for."""

    def faults(self) -> list[str]:
        """What is wrong between settings that are each right by themselves, as "dotted.path: message"."""
        return []


_IN_FULL = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_SHORT = {full: short for short, full in _IN_FULL.items()}


def _shorten(name: Any) -> Any:
    return _SHORT.get(name, name) if isinstance(name, str) else name


def _expand(name: Any) -> Any:
    return _IN_FULL.get(name, name) if isinstance(name, str) else name


ComputingType = Annotated[Literal["fp32", "bf16", "fp16"], BeforeValidator(_shorten)]
StoredType = Annotated[Literal["float16", "bfloat16", "float32"], BeforeValidator(_expand)]

AlphaRule = Literal["white", "drop"]


def _name_switch(switch: Any) -> Any:
    return ("always" if switch else "never") if isinstance(switch, bool) else switch


CompileChoice = Annotated[Literal["auto", "always", "never"], BeforeValidator(_name_switch)]
"""Whether networks run compiled: auto asks `models.compilation.repays_compiling`; true and false are the other two."""


_LARGEST = (1 << 63) - 1  # what PyTorch can take for a size or a seed
Positive = Annotated[int, Field(ge=1, le=_LARGEST)]
NonNegative = Annotated[int, Field(ge=0, le=_LARGEST)]
MAX_STEPS = 10_000  # ten times what the longest published schedule has; each step costs a pass through the network
NumSteps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
NumWorkers = Annotated[int, Field(ge=0, le=1024)]
PositiveNumber = Annotated[float, Field(gt=0)]
NonNegativeNumber = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class OptimiserSettings(Section):
    """AdamW and its learning rate over time."""

    learning_rate: PositiveNumber
    """The rate after warm-up."""
    weight_decay: NonNegativeNumber = 0.0
    """AdamW's decoupled weight decay."""
    decay: Literal["all", "matrices"] = "matrices"
    """What it acts on: every tensor, as in efficientvit's diffusion trainings, or all but biases, norms and vectors."""
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

    def warmup_faults(self, steps: int) -> list[str]:
        """Whether the warm-up leaves a cosine any of so many steps."""
        if self.schedule != "cosine" or self.warmup_steps < steps:
            return []
        left = f"{self.warmup_steps} leave nothing of {steps} steps; take more steps, or set it to {steps // 10}"
        return [f"warmup_steps: {left}"]


OnNonFinite = Literal["stop", "skip"]


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
    tf32: bool | None = None
    """Round the inputs of float32 products and convolutions to 10 bits on NVIDIA GPUs, as published: yes, no, or null:
    PyTorch's default, convolutions alone."""
    compile: CompileChoice = "auto"
    """Use torch.compile: minutes at the start, faster steps. auto: on CUDA, in runs that are long enough to gain."""
    channels_last: bool = False
    """Keep images in memory as NHWC, which tensor cores prefer."""
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
