"""How far each sampler is from the closed form on Gaussian data, and how far half precision is from float32.

    PYTHONPATH=. python benchmarks/sampler_accuracy.py

Prints the two tables of docs/sampling.md. Run from the root of the repository: networks and closed forms are the
tests'. Takes about a minute on two CPU cores.
"""

import itertools
import math
from collections.abc import Callable

import torch

from dcae_core.diffusion import guide, run_sampler, sample_ddpm, sample_dopri5, sample_euler_maruyama
from dcae_core.diffusion.schedules import LINEAR
from tests.denoisers import CLASSES, NULL_CLASS, golden_denoiser
from tests.diffusion import gaussian
from tests.diffusion.test_convergence import ANSWERS, NOISE, SAMPLES, SMOOTH_LINEAR
from tests.golden import golden_noise, relative_error

STEPS = (10, 20, 40, 80, 160)
RUNS = (
    ("uvit_tiny", "epsilon", "dpm-solver", (1.0, 1.5, 6.0)),
    ("uvit_tiny", "velocity", "dopri5", (1.0, 1.5)),
    ("dit_tiny", "epsilon_variance", "ddpm", (1.0, 1.3)),
)


def print_orders(name: str, error: Callable[[int], float]) -> None:
    errors = [error(steps) for steps in STEPS]
    orders = [math.log2(large / small) for large, small in itertools.pairwise(errors)]
    cells = [f"{error:.1e}" for error in errors] + [", ".join(f"{order:.2f}" for order in orders)]
    print(f"| {name} | {' | '.join(cells)} |")


def deviation_error(run: Callable[..., torch.Tensor], steps: int) -> float:
    _, deviation = gaussian.moments(lambda x, noise: run(x, steps, noise), steps)
    return abs(deviation - gaussian.DEVIATION) / gaussian.DEVIATION


def print_half_precision() -> None:
    noise = golden_noise("x", (4, 32, 8, 8))
    generator = torch.Generator().manual_seed(0)
    step_noise = [torch.randn(noise.shape, generator=generator) for _ in range(250)]
    for name, prediction, sampler, scales in RUNS:
        for scale in scales:
            samples = {}
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                network = golden_denoiser(name).to(dtype).requires_grad_(False)
                model = guide(
                    lambda x, t, y, network=network, dtype=dtype: network(x.to(dtype), t, y).float(),
                    CLASSES,
                    NULL_CLASS,
                    scale,
                )
                samples[dtype] = run_sampler(sampler, model, noise, prediction=prediction, step_noise=step_noise)
            exact = samples.pop(torch.float32)
            errors = " | ".join(f"{relative_error(sample, exact):.1e}" for sample in samples.values())
            print(f"| {name} | {sampler} | {scale} | {errors} |")


def main() -> None:
    torch.set_num_threads(1)
    print("| sampler | " + " | ".join(f"{steps} steps" for steps in STEPS) + " | order |")
    for name, sample in SAMPLES.items():
        # the singlestep solver reaches its order where a remainder of 2 by 3 is left: 11, 20, 41, 80, 161 evaluations
        extra = 1 if name == "dpm-solver" else 0
        print_orders(
            name,
            lambda n, name=name, run=sample, extra=extra: relative_error(run(n + extra * (n % 3 == 1)), ANSWERS[name]),
        )
    ddpm_model, velocity = gaussian.epsilon(SMOOTH_LINEAR), gaussian.velocity(LINEAR)
    print_orders(
        "ddpm (deviation)",
        lambda n: deviation_error(lambda x, n, w: sample_ddpm(ddpm_model, x, n, w, schedule=SMOOTH_LINEAR), n),
    )
    print_orders(
        "euler-maruyama (deviation)",
        lambda n: deviation_error(lambda x, n, w: sample_euler_maruyama(velocity, x, n, w, last_step=1 / n), n),
    )
    for rtol in (1e-3, 1e-4, 1e-5, 1e-6):
        calls: list[float] = []
        sample = sample_dopri5(lambda x, t, calls=calls: calls.append(float(t)) or velocity(x, t), NOISE, rtol)
        print(f"dopri5, rtol {rtol:g}: error {relative_error(sample, ANSWERS['euler']):.1e}, {len(calls)} evaluations")
    print("\n| network | sampler | guidance | bf16 | fp16 |")
    print_half_precision()


if __name__ == "__main__":
    main()
