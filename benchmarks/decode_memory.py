"""Peak memory and time of decoding large images, whole and in tiles.

    python benchmarks/decode_memory.py [--model M] [--sizes 1024 2048 4096] [--tiles 0 1024 512] [--plain]

Memory is what a call takes beyond the network's own weights; a tile of 0 is the whole image at once.
"""

import argparse
import time
from functools import partial

import torch

from dcae_core.benchmarking.measuring import held_bytes, peak_bytes
from dcae_core.benchmarking.networks import open_autoencoder
from dcae_core.models.inference import prepare_for_inference
from dcae_core.pipelines.tiling import decode_latent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--tiles", type=int, nargs="+", default=[0, 1024, 512])
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    opened = open_autoencoder(arguments.model, device, torch.float32)
    network = opened.network if arguments.plain else prepare_for_inference(opened.network)
    ratio, channels = network.spatial_compression_ratio, network.latent_channels
    decode_latent(network, torch.randn(channels, 8, 8), (8 * ratio, 8 * ratio))  # transforms the weights
    print(f"{opened.name}, {held_bytes(network) / 1e6:.0f} MB held, {torch.get_num_threads()} thread(s)")
    for size in arguments.sizes:
        latent = torch.randn(channels, size // ratio, size // ratio)
        for tile in arguments.tiles:
            if tile >= size:
                continue
            cpu = time.process_time()
            call = partial(decode_latent, network, latent, (size, size), tile=tile or None)
            peak = peak_bytes(call, device)
            cpu = time.process_time() - cpu
            told = "unknown" if peak is None else f"{peak / 1e6:,.0f} MB"
            print(
                f"{size:5} px  {f'tiles of {tile}' if tile else 'whole':15} peak {told:>10}  {cpu:6.1f} s of CPU",
                flush=True,
            )


if __name__ == "__main__":
    main()
