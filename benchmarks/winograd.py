"""Time the 3x3 convolution of `dcae_core.models.winograd` beside nn.Conv2d's, shape by shape, in alternation.

    python benchmarks/winograd.py [--repeats 5] [--threads 1]

Shapes are those of the released autoencoders and of the embedded one. Ratios are medians over pairs of calls, by the
clock and by processor time; the last columns say what the rule of each family of processors decides.
"""

import argparse
from statistics import median

import torch
import torch.nn.functional as F

from dcae_core.benchmarking.measuring import Contestant, Measurement, Subject, advantage, device_name, measure
from dcae_core.devices import processor_family
from dcae_core.models.winograd import RULES, rule_for, transform_weight, winograd_conv2d

SHAPES = (
    *((128, 128, side) for side in (512, 256, 128, 64, 32)),
    *((256, 256, side) for side in (256, 128, 64, 32, 16)),
    *((512, 512, side) for side in (128, 64, 32, 16)),
    *((1024, 1024, side) for side in (64, 32, 16, 8)),
    *((128, 256, 64), (256, 512, 32), (256, 1024, 16), (64, 64, 128)),  # the embedded model's others
)
COLUMNS = (
    "| in, out, positions | winograd ms | and weights ms | conv2d ms | ratio | by CPU time | with weights | here |"
)


def contest(in_channels: int, out_channels: int, side: int) -> Subject:
    """Ways of convolving one image of `side` x `side`; transformed weights are at hand, or made at the call."""
    x = torch.randn(1, in_channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(out_channels, in_channels, 3, 3) / (9 * in_channels) ** 0.5).contiguous(
        memory_format=torch.channels_last
    )
    bias, transformed = torch.randn(out_channels), transform_weight(weight)
    return Subject(
        "convolution",
        f"{in_channels}, {out_channels}, {side} x {side}",
        1,
        9 * in_channels * out_channels * side**2,
        (in_channels + out_channels) * side**2 * x.element_size(),
        [
            Contestant("winograd", lambda: winograd_conv2d(x, transformed, bias)),
            Contestant("winograd, weights too", lambda: winograd_conv2d(x, transform_weight(weight), bias)),
            Contestant("nn.Conv2d", lambda: F.conv2d(x, weight, bias, padding=1)),
        ],
    )


def cpu_advantage(measurement: Measurement, over: Measurement) -> float:
    """`advantage` by processor time, which others on the machine disturb less."""
    return median(theirs / ours for ours, theirs in zip(measurement.cpu_seconds, over.cpu_seconds, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cpu, family = torch.device("cpu"), processor_family()
    print(f"{device_name(cpu)} (family: {family}), {arguments.threads} thread(s), torch {torch.__version__}")
    print(f"rule: {rule_for(family)}\n")
    print(COLUMNS, *(f" {other} |" for other in RULES), sep="")
    print("|---" * (COLUMNS.count("|") - 1 + len(RULES)) + "|")
    with torch.inference_mode():
        for shape in SHAPES:
            fast, whole, plain = measure(contest(*shape), arguments.repeats, cpu)
            chosen = [
                "winograd" if rule.pays(*shape, shape[-1]) else "plain" for rule in (rule_for(family), *RULES.values())
            ]
            cells = (
                fast.subject.setting,
                *(f"{1e3 * way.median_seconds:.1f}" for way in (fast, whole, plain)),
                f"{advantage(fast, over=plain):.2f}",
                f"{cpu_advantage(fast, over=plain):.2f}",
                f"{cpu_advantage(whole, over=plain):.2f}",
                *chosen,
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
