"""Training losses, one per kind of prediction. Each returns a loss per sample; the caller averages.

A loss is a dictionary of tensors (B,): `loss`, which is to be minimised, and the parts it is the sum of.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from dcae_core.diffusion.schedules import (
    DiscreteSchedule,
    linear_schedule,
    linear_state,
    linear_velocity,
    over_samples,
    scaled_linear_schedule,
)
from dcae_core.diffusion.solvers import Posterior

Losses = dict[str, Tensor]
_Model = Callable[[Tensor, Tensor], Tensor]
"""model(x, t): x (B, C, H, W), t (B,)."""


def epsilon_loss(model: _Model, data: Tensor, noise: Tensor, t: Tensor, schedule: DiscreteSchedule) -> Losses:
    """Mean squared error of the predicted noise.

    Args:
        model: model(x, t) -> epsilon (B, C, H, W).
        data: scaled latents (B, C, H, W).
        noise: standard normal, of the same shape.
        t: the schedule's own integer times, (B,).
        schedule: the noise schedule.

    Returns:
        `loss` (B,).

    Source: arXiv 2006.11239, equation 14.
    """
    return {"loss": _mean(model(_noisy(data, noise, t, schedule), t) - noise, power=2)}


def min_snr_epsilon_loss(
    model: _Model, data: Tensor, noise: Tensor, t: Tensor, schedule: DiscreteSchedule, gamma: float
) -> Losses:
    """Mean squared error of the predicted noise, weighted by min(SNR, gamma) / SNR: hardly noisy samples count less.

    Args:
        model: model(x, t) -> epsilon (B, C, H, W).
        data: scaled latents (B, C, H, W).
        noise: standard normal, of the same shape.
        t: the schedule's own integer times, (B,).
        schedule: the noise schedule; its SNR is alpha^2 / sigma^2.
        gamma: above this signal-to-noise ratio samples count less than 1.

    Returns:
        `loss` and the unweighted `mse`, each (B,).

    Source: arXiv 2303.09556, section 3.4, for the prediction of noise; gamma is 5 there.
    """
    mse = epsilon_loss(model, data, noise, t, schedule)["loss"]
    snr = _tables(schedule, data.device)["snr"][t - schedule.first_timestep]
    return {"loss": mse * (snr.clamp(max=gamma) / snr), "mse": mse}


def velocity_loss(model: _Model, data: Tensor, noise: Tensor, t: Tensor) -> Losses:
    """Mean squared error of the predicted velocity of the straight path from noise to data.

    Args:
        model: model(x, t) -> velocity (B, C, H, W).
        data: scaled latents (B, C, H, W).
        noise: standard normal, of the same shape.
        t: times in [0, 1], (B,).

    Returns:
        `loss` (B,).

    Source: SiT (arXiv 2401.08740), equation 5.
    """
    return {"loss": _mean(model(linear_state(data, noise, t), t) - linear_velocity(data, noise), power=2)}


def epsilon_variance_loss(model: _Model, data: Tensor, noise: Tensor, t: Tensor, schedule: DiscreteSchedule) -> Losses:
    """Mean squared error of the predicted noise, plus the variational bound, which here trains the variance alone.

    Args:
        model: model(x, t) -> (B, 2C, H, W): epsilon, and where the log variance lies in its range.
        data: scaled latents (B, C, H, W).
        noise: standard normal, of the same shape.
        t: the schedule's own integer times, (B,).
        schedule: the noise schedule.

    Returns:
        `loss` = `mse` + `vb` (bits per dimension), each (B,).

    Source: arXiv 2102.09672, section 3.1; facebookresearch/DiT `diffusion/gaussian_diffusion.py`, `training_losses`.
    """
    x = _noisy(data, noise, t, schedule)
    epsilon, fraction = model(x, t).chunk(2, dim=1)
    mse = _mean(epsilon - noise, power=2)
    vb = _variational_bound(epsilon.detach(), fraction, x, data, t, schedule)
    return {"loss": mse + vb, "mse": mse, "vb": vb}


def _variational_bound(
    epsilon: Tensor, fraction: Tensor, x: Tensor, data: Tensor, t: Tensor, schedule: DiscreteSchedule
) -> Tensor:
    """KL between the true and the predicted posterior, or at the first step the likelihood of the data; in bits."""
    tables, index = _tables(schedule, x.device), t - schedule.first_timestep

    def at(name: str) -> Tensor:
        return over_samples(tables[name][index], x)

    # At the first steps this cancels almost everything in float32: keep the published order of operations.
    predicted_data = at("state to data") * x - at("noise to data") * epsilon
    predicted_mean = at("data to mean") * predicted_data + at("state to mean") * x
    true_mean = at("data to mean") * data + at("state to mean") * x
    low, high, share = at("log variance"), at("log beta"), (fraction + 1) / 2
    log_variance = share * high + (1 - share) * low
    gap = true_mean - predicted_mean
    kl = 0.5 * (-1 + log_variance - low + torch.exp(low - log_variance) + gap**2 * torch.exp(-log_variance))
    likelihood = _discretised_log_likelihood(data, predicted_mean, 0.5 * log_variance)
    return torch.where(index == 0, -_mean(likelihood), _mean(kl)) / math.log(2.0)


@lru_cache
def _tables(schedule: DiscreteSchedule, device: torch.device) -> dict[str, Tensor]:
    """What each step multiplies by: computed once in float64, kept on the device in float32."""
    posterior = Posterior(schedule, list(range(schedule.num_timesteps)))
    alphas_cumprod = schedule.alphas_cumprod
    tables = {
        "alpha": np.sqrt(alphas_cumprod),
        "sigma": np.sqrt(1 - alphas_cumprod),
        "snr": alphas_cumprod / (1 - alphas_cumprod),
        "state to data": np.sqrt(1 / alphas_cumprod),
        "noise to data": np.sqrt(1 / alphas_cumprod - 1),
        "data to mean": posterior.data_coefficient,
        "state to mean": posterior.state_coefficient,
        "log variance": posterior.log_variance,
        "log beta": posterior.log_betas,
    }
    return {name: torch.tensor(values, dtype=torch.float32, device=device) for name, values in tables.items()}


def _discretised_log_likelihood(data: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log probability of a bin of width 2/255 around `data`, the outer bins open; kept for latents as published.

    Source: arXiv 2006.11239, equation 13, with the tanh approximation of the normal distribution function.
    """
    precision = torch.exp(-log_deviation)
    above, below = _normal_cdf(precision * (data - mean + 1 / 255)), _normal_cdf(precision * (data - mean - 1 / 255))
    bin_mass = torch.where(data < -0.999, above, torch.where(data > 0.999, 1 - below, above - below))
    return torch.log(bin_mass.clamp(min=1e-12))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _noisy(data: Tensor, noise: Tensor, t: Tensor, schedule: DiscreteSchedule) -> Tensor:
    tables, index = _tables(schedule, data.device), t - schedule.first_timestep
    alpha, sigma = (over_samples(tables[name][index], data).to(data.dtype) for name in ("alpha", "sigma"))
    return alpha * data + sigma * noise


def _mean(x: Tensor, power: int = 1) -> Tensor:
    return x.float().pow(power).flatten(1).mean(1)


@dataclass(frozen=True)
class Objective:
    """How a network of one kind of prediction is trained.

    Attributes:
        draw_times: draw_times(batch_size, generator) -> network times (B,) on the CPU.
        losses: losses(model, data, noise, t) -> the losses per sample.
    """

    draw_times: Callable[[int, torch.Generator], Tensor]
    losses: Callable[[_Model, Tensor, Tensor, Tensor], Losses]


def _discrete(
    losses: Callable[[_Model, Tensor, Tensor, Tensor, DiscreteSchedule], Losses], schedule: DiscreteSchedule
) -> Objective:
    first, last = schedule.first_timestep, schedule.first_timestep + schedule.num_timesteps
    return Objective(
        draw_times=lambda batch_size, generator: torch.randint(first, last, (batch_size,), generator=generator),
        losses=lambda model, data, noise, t: losses(model, data, noise, t, schedule),
    )


@dataclass(frozen=True)
class TimeDistribution:
    """How often a velocity model is trained at which time of the straight path, 0 being noise and 1 data.

    Described by the share of noise u = 1 - t, as the source does: uniform, or logit(u) normal; then shifted to
    shift * u / (1 + (shift - 1) * u).

    Attributes:
        name: "uniform" or "logit_normal".
        mean: of logit(u); above 0 means noisier.
        scale: standard deviation of logit(u).
        shift: above 1 means noisier; latents of more values need more noise to lose the same information.

    Source: arXiv 2403.03206 (Stable Diffusion 3), section 3.1 and equation 23.
    """

    name: str = "uniform"
    mean: float = 0.0
    scale: float = 1.0
    shift: float = 1.0

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Times (num,) in [0, 1], float32, on the CPU."""
        if self.name == "uniform":
            t = torch.rand(num, generator=generator)
        else:
            t = torch.sigmoid(-(self.mean + self.scale * torch.randn(num, generator=generator)))
        return t if self.shift == 1.0 else t / (t + self.shift * (1 - t))


def resolution_shift(num_values: int, base: int) -> float:
    """The shift for latents of `num_values` = C * h * w values where `base` values need none: sqrt(num_values / base).

    Source: arXiv 2403.03206, equation 23; for latents of many channels arXiv 2510.11690 (RAE), base 4096.
    """
    return math.sqrt(num_values / base)


_UNIFORM = TimeDistribution()


def build_objective(
    prediction: str, *, times: TimeDistribution = _UNIFORM, min_snr_gamma: float | None = None
) -> Objective:
    """What trains a network of one kind of prediction.

    Args:
        prediction: "epsilon", "velocity" or "epsilon_variance"; without the rest, the published trainings of U-ViT,
            USiT and DiT.
        times: of velocity; the others draw their steps uniformly.
        min_snr_gamma: of epsilon: see `min_snr_epsilon_loss`; None weighs all samples alike.
    """
    assert min_snr_gamma is None or prediction == "epsilon"
    assert times == _UNIFORM or prediction == "velocity"
    if prediction == "velocity":
        return Objective(times.draw, velocity_loss)
    if prediction == "epsilon_variance":
        return _discrete(epsilon_variance_loss, linear_schedule())
    if min_snr_gamma is None:
        return _discrete(epsilon_loss, scaled_linear_schedule())
    return _discrete(partial(min_snr_epsilon_loss, gamma=min_snr_gamma), scaled_linear_schedule())


OBJECTIVES: dict[str, Objective] = {name: build_objective(name) for name in ("epsilon", "velocity", "epsilon_variance")}
