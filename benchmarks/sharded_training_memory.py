"""Peak memory of UViT-2B's training step in each of several processes (FSDP2).

    torchrun --nproc-per-node 2 benchmarks/sharded_training_memory.py [--depths 4 8] [--batch 4]

Each line is the most resident memory that any of the processes takes to build the network and go two steps, beside what
counting expects: 20 bytes a parameter (weight, gradient, two moments, average) divided by the number of processes, and
what the forward pass keeps. Both grow in proportion to the depth; the published one is 28.
"""

import argparse

import numpy as np
import torch
from torch import nn

from dcae_core.benchmarking.memory import peak_bytes
from dcae_core.data.latents.loader import LatentBatch
from dcae_core.diffusion.objectives import OBJECTIVES
from dcae_core.distributed import gather_objects, is_main, process_group, world_size
from dcae_core.models.denoisers import build_denoiser
from dcae_core.models.uvit import UViTConfig
from dcae_core.recipes.train_diffusion import DenoiserSettings, TrainDiffusionRecipe
from dcae_core.recipes.training import ExecutionSettings, OptimiserSettings
from dcae_core.training.diffusion import MODEL, DiffusionTask
from dcae_core.training.diffusion_batches import Chance, DiffusionBatch
from dcae_core.training.memory import saved_bytes
from dcae_core.training.parallel import shard_by_block

HIDDEN_SIZE, NUM_HEADS = 2048, 32
LATENT_CHANNELS, LATENT_SIZE = 32, 16  # f32c32, 512 px: 258 tokens
BYTES_PER_PARAMETER = 20
OPTIMISER = OptimiserSettings(learning_rate=1e-4, betas=[0.99, 0.99], weight_decay=0.03)


def configuration(depth: int, checkpointing: bool) -> UViTConfig:
    return UViTConfig(
        input_size=LATENT_SIZE,
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        hidden_size=HIDDEN_SIZE,
        depth=depth,
        num_heads=NUM_HEADS,
        activation_checkpointing=checkpointing,
    )


def make_batch(config: UViTConfig, size: int) -> DiffusionBatch:
    latents, numbers = torch.randn(size, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE), np.arange(size)
    read = LatentBatch(latents, torch.zeros(size, dtype=torch.long), numbers, numbers, 0.0)
    return Chance(0, OBJECTIVES["epsilon"], 0.1, config.num_classes).complete(read)


def measure(config: UViTConfig, batch: int) -> int:
    """The most that any process has beyond what it had before the network was built."""

    def train() -> None:
        network = build_denoiser(config)
        shard_by_block(network)
        settings = DenoiserSettings(
            architecture="uvit", patch_size=1, hidden_size=HIDDEN_SIZE, depth=config.depth, num_heads=NUM_HEADS
        )
        recipe = TrainDiffusionRecipe(
            run_dir="",
            latents="",
            network=settings,
            objective="epsilon",
            steps=2,
            batch_size=batch * world_size(),
            optimiser=OPTIMISER,
            execution=ExecutionSettings(sharding="fsdp", activation_checkpointing=config.activation_checkpointing),
        )
        task = DiffusionTask(network, recipe, 1.0, None)
        for step in range(recipe.steps):
            (loss,) = task.losses(make_batch(config, batch), step)
            loss.value.backward()
            task.players[MODEL].optimiser.step()
            task.players[MODEL].optimiser.zero_grad(set_to_none=True)
            task.ema.update()

    return max(gather_objects(peak_bytes(train, torch.device("cpu"))))


class _AtNoTime(nn.Module):
    """The network as a function of latents alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(len(x), device=x.device)
        return self.network(x, zeros, zeros.long())


def count(config: UViTConfig, batch: int) -> tuple[float, float]:
    """Bytes of one process's share of the state, and of what its forward pass keeps."""
    with torch.device("meta"):
        network = build_denoiser(config)
        x = torch.empty(batch, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return BYTES_PER_PARAMETER * parameters / world_size(), saved_bytes(_AtNoTime(network), x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--batch", type=int, default=4, help="latents of each process")
    arguments = parser.parse_args()
    with process_group(torch.device("cpu")):
        for depth in arguments.depths:
            for checkpointing in (False, True):
                config = configuration(depth, checkpointing)
                peak = measure(config, arguments.batch)
                state, kept = count(config, arguments.batch)
                if is_main():
                    print(
                        f"{world_size()} process(es), depth {depth}, batch {arguments.batch} each, "
                        f"{'with' if checkpointing else 'without'} activation checkpointing: "
                        f"peak {peak / 1e9:.2f} GB each (state {state / 1e9:.2f}, activations {kept / 1e9:.2f})",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
