"""Time the 3x3 convolution of `dcae_core.models.winograd` beside nn.Conv2d's, shape by shape, in alternation.

    python benchmarks/winograd.py [--repeats 5]

Shapes are those of the released autoencoders; the last column says what `pays` decides for each.
"""

import argparse

import torch
import torch.nn.functional as F

from dcae_core.benchmarking.measuring import Contestant, Subject, advantage, measure
from dcae_core.models.winograd import pays, transform_weight, winograd_conv2d

SHAPES = ((32, 64), (64, 64), (128, 64), (128, 256), (256, 128), (512, 64), (512, 32), (512, 16), (1024, 32), (1024, 8))


def pair(channels: int, side: int) -> Subject:
    """Both ways of convolving one image of `side` x `side` positions; transformed weights are at hand."""
    x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5).contiguous(
        memory_format=torch.channels_last
    )
    bias, transformed = torch.randn(channels), transform_weight(weight)
    return Subject(
        "convolution",
        f"{channels} channels, {side} x {side}",
        1,
        9 * channels**2 * side**2,
        2 * x.nbytes,
        [
            Contestant("winograd", lambda: winograd_conv2d(x, transformed, bias)),
            Contestant("nn.Conv2d", lambda: F.conv2d(x, weight, bias, padding=1)),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    with torch.inference_mode():
        for channels, side in SHAPES:
            fast, plain = measure(pair(channels, side), repeats, torch.device("cpu"))
            by_cpu = sum(plain.cpu_seconds) / sum(fast.cpu_seconds)
            chosen = "winograd" if pays(channels, channels, side, side) else "plain"
            print(
                f"{fast.subject.setting:26} winograd {1e3 * fast.median_seconds:7.1f} ms, "
                f"conv2d {1e3 * plain.median_seconds:7.1f} ms: {advantage(fast, over=plain):.2f}x, "
                f"by CPU time {by_cpu:.2f}x, difference {plain.difference:.0e}; taken: {chosen}",
                flush=True,
            )


if __name__ == "__main__":
    main()
