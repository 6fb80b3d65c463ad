"""What a diffusion network is made of, as plain values that can be checked, printed and saved."""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from dcae_core.errors import UsageError
from dcae_core.models.config_values import MAX_BLOCKS, MAX_CHANNELS, require_choice, require_count

_MAX_CLASSES, _MAX_SIDE = 1 << 30, 1 << 20


@dataclass(frozen=True)
class DenoiserConfig:
    """What every network of the form `forward(x, t, y)` is described by.

    Attributes:
        input_size: height and width of the latent; one number stands for a square.
        patch_size: side of the square of latent positions that makes one token; divides both sides.
        in_channels: channels of the latent.
        hidden_size: width of a token, a multiple of `num_heads`.
        depth: number of transformer blocks.
        num_heads: attention heads.
        num_classes: classes 0..num_classes-1; class `num_classes` is the null class. 0: unconditional.
        activation_checkpointing: recompute each block's activations in the backward pass, which trades about a third
            more computing for memory that no longer grows with depth.
    """

    architecture: ClassVar[str]

    input_size: int | tuple[int, int] = 16
    patch_size: int = 1
    in_channels: int = 32
    hidden_size: int = 512
    depth: int = 12
    num_heads: int = 8
    num_classes: int = 1000
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        limits = {"patch_size": MAX_CHANNELS, "in_channels": MAX_CHANNELS, "hidden_size": MAX_CHANNELS}
        for name, limit in (limits | {"depth": MAX_BLOCKS, "num_heads": MAX_CHANNELS}).items():
            require_count(f"{self.architecture} {name}", getattr(self, name), 1, limit)
        require_count(f"{self.architecture} num_classes (0: unconditional)", self.num_classes, 0, _MAX_CLASSES)
        self._check_input_size()
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                require_choice(f"{self.architecture} {field.name}", getattr(self, field.name), (True, False))
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UsageError(
                f"{self.architecture} hidden_size {self.hidden_size} must be a multiple of 4 "
                f"and of num_heads {self.num_heads}"
            )
        if any(side % self.patch_size for side in self.latent_size):
            raise UsageError(
                f"{self.architecture} input_size {self.input_size} must be a multiple of patch_size {self.patch_size}"
            )

    def _check_input_size(self) -> None:
        size = self.input_size
        if isinstance(size, tuple) and len(size) != 2:
            raise UsageError(f"{self.architecture} input_size is one number or (height, width), not {size}")
        for side in size if isinstance(size, tuple) else (size,):
            require_count(f"{self.architecture} input_size", side, 1, _MAX_SIDE)

    @property
    def latent_size(self) -> tuple[int, int]:
        """(height, width) of the latent."""
        size = self.input_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        height, width = self.latent_size
        return height // self.patch_size, width // self.patch_size

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.in_channels

    def require_latent(self, shape: Sequence[int]) -> None:
        """Refuse latents whose shape is not (B, in_channels, *latent_size).

        Raises:
            UsageError: it is not.
        """
        channels, height, width = self.in_channels, *self.latent_size
        if len(shape) != 4 or tuple(shape[1:]) != (channels, height, width):
            raise UsageError(
                f"this {self.architecture} takes latents (B, {channels}, {height}, {width}), not {tuple(shape)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `architecture` among them; `denoisers.denoiser_config` reads them back."""
        return {"architecture": self.architecture} | dataclasses.asdict(self)

    def replace(self, **overrides: Any) -> Self:
        """The same configuration with some fields changed.

        Raises:
            UsageError: an unknown field, or values that no network can be built from.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=3)
                hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(fields)}"
                raise UsageError(f"{self.architecture} has no setting {name!r}{hint}")
        if isinstance(overrides.get("input_size"), list):
            overrides["input_size"] = tuple(overrides["input_size"])
        return dataclasses.replace(self, **overrides)
