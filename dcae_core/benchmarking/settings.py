"""What a benchmark is asked for."""

from dataclasses import dataclass

import torch

DIFFUSERS, PLAIN = "diffusers", "plain"
PEERS = (DIFFUSERS, PLAIN)


@dataclass(frozen=True)
class BenchSettings:
    """One run of `dcae bench`.

    Attributes:
        device: where to compute.
        dtype: of the networks; of training, the type of matrix products.
        model: a zoo name, hub id or directory; None takes the embedded autoencoder and the smallest released denoiser.
        resolution: side of the pictures.
        batch: pictures, latents or samples of one call.
        repeats: timed rounds.
        num_steps: of sampling; None is the sampler's default.
        guidance_scale: of sampling; other than 1 it doubles the work.
        plain: measure the network as it was published, not the prepared one.
        compile: on CUDA, compile and record; ignored elsewhere.
        against: what to run in alternation, of `PEERS`.
    """

    device: torch.device
    dtype: torch.dtype
    model: str | None = None
    resolution: int = 512
    batch: int = 1
    repeats: int = 5
    num_steps: int | None = None
    guidance_scale: float = 1.0
    plain: bool = False
    compile: bool = True
    against: tuple[str, ...] = ()

    @property
    def compiles(self) -> bool:
        """Whether ours runs compiled."""
        return self.compile and not self.plain and self.device.type == "cuda"
