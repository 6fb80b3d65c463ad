"""Noise schedules, and the paths between data and noise."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    """A schedule given by the variances added in N discrete steps, made continuous by interpolating log alpha.

    Step n = 1..N lies at time n / N; between steps log alpha is linear in time. Times run from 1 / N to 1.

    Attributes:
        betas: variance added by each step, (N,), each in (0, 1).
        first_timestep: what the network calls step 1: 0 for DDPM and DiT, 1 for U-ViT.

    Source: arXiv 2206.00927, appendix D ("discrete-time DPMs").
    """

    betas: NDArray[np.float64]
    first_timestep: int

    @property
    def num_timesteps(self) -> int:
        """N."""
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> NDArray[np.float64]:
        """alpha^2 after each step, (N,)."""
        return np.cumprod(1.0 - self.betas, dtype=np.float64)

    @cached_property
    def _times(self) -> NDArray[np.float64]:
        return np.arange(1, self.num_timesteps + 1) / self.num_timesteps

    @cached_property
    def _log_alphas(self) -> NDArray[np.float64]:
        return 0.5 * np.cumsum(np.log1p(-self.betas))

    def log_alpha(self, t: ArrayLike) -> NDArray[np.float64]:
        """Log of the data's coefficient at times t in [1 / N, 1]."""
        return _interpolate(np.asarray(t, dtype=np.float64), self._times, self._log_alphas)

    def alpha(self, t: ArrayLike) -> NDArray[np.float64]:
        """The data's coefficient."""
        return np.exp(self.log_alpha(t))

    def sigma(self, t: ArrayLike) -> NDArray[np.float64]:
        """The noise's coefficient."""
        return np.sqrt(-np.expm1(2.0 * self.log_alpha(t)))

    def lambda_(self, t: ArrayLike) -> NDArray[np.float64]:
        """Half the log signal-to-noise ratio, log(alpha / sigma); falls with time."""
        return self.log_alpha(t) - np.log(self.sigma(t))

    def inverse_lambda(self, lambda_: ArrayLike) -> NDArray[np.float64]:
        """The time at which `lambda_` has this value."""
        log_alpha = -0.5 * np.logaddexp(0.0, -2.0 * np.asarray(lambda_, dtype=np.float64))
        return _interpolate(log_alpha, self._log_alphas[::-1], self._times[::-1])

    def network_time(self, t: ArrayLike) -> NDArray[np.float64]:
        """Time in [1 / N, 1] -> what the network is given."""
        return self.num_timesteps * np.asarray(t, dtype=np.float64) - 1 + self.first_timestep


def scaled_linear_schedule(num_timesteps: int = 1000, first_timestep: int = 1) -> DiscreteSchedule:
    """Betas whose square roots rise evenly from sqrt(0.00085) to sqrt(0.012): latent diffusion's, and U-ViT's."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, num_timesteps) ** 2 * (1000 / num_timesteps)
    return DiscreteSchedule(betas, first_timestep)


def linear_schedule(num_timesteps: int = 1000, first_timestep: int = 0) -> DiscreteSchedule:
    """Betas that rise evenly from 1e-4 to 0.02 (arXiv 2006.11239): DDPM's, and DiT's."""
    return DiscreteSchedule(np.linspace(1e-4, 0.02, num_timesteps) * (1000 / num_timesteps), first_timestep)


def _interpolate(
    x: NDArray[np.float64], knots: NDArray[np.float64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Piecewise linear; the outermost segments go on beyond the ends."""
    segment = np.clip(np.searchsorted(knots, x) - 1, 0, len(knots) - 2)
    slope = (values[segment + 1] - values[segment]) / (knots[segment + 1] - knots[segment])
    return values[segment] + slope * (x - knots[segment])


_Coefficient = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """The coefficients of a path and their derivatives in time, as functions of a tensor of times in [0, 1].

    In every method `x` is the state (B, C, H, W), `t` its time, 0-d or (B,).

    Source: SiT (arXiv 2401.08740), section 2 and table 1; willisma/SiT `transport/path.py`.
    """

    name: str
    alpha: _Coefficient
    sigma: _Coefficient
    alpha_slope: _Coefficient
    sigma_slope: _Coefficient

    def state(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        t = over_samples(t, data)
        return self.alpha(t) * data + self.sigma(t) * noise

    def velocity(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt for this pair of data and noise."""
        t = over_samples(t, data)
        return self.alpha_slope(t) * data + self.sigma_slope(t) * noise

    def noise_from_velocity(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise that x_t and its velocity stand for."""
        t = over_samples(t, x)
        return (self.alpha(t) * velocity - self.alpha_slope(t) * x) / self._determinant(t)

    def data_from_velocity(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The data that x_t and its velocity stand for."""
        t = over_samples(t, x)
        return (self.sigma_slope(t) * x - self.sigma(t) * velocity) / self._determinant(t)

    def score_from_velocity(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p_t at x; not defined where sigma is 0."""
        return -self.noise_from_velocity(velocity, x, t) / self.sigma(over_samples(t, x))

    def velocity_from_noise(self, noise: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at x for predicted noise; not defined where alpha is 0."""
        t = over_samples(t, x)
        return self.alpha_slope(t) / self.alpha(t) * (x - self.sigma(t) * noise) + self.sigma_slope(t) * noise

    def velocity_from_score(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at x for a predicted score; not defined where alpha is 0."""
        return self.velocity_from_noise(-self.sigma(over_samples(t, x)) * score, x, t)

    def _determinant(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.sigma_slope(t) - self.alpha_slope(t) * self.sigma(t)


def over_samples(t: Tensor, x: Tensor) -> Tensor:
    """Times (B,) shaped to multiply states (B, C, H, W); a 0-d time stays as it is."""
    return t if t.dim() == 0 else t.reshape(-1, *[1] * (x.dim() - 1))


LINEAR = Path(
    "linear",
    alpha=lambda t: t,
    sigma=lambda t: 1 - t,
    alpha_slope=torch.ones_like,
    sigma_slope=lambda t: -torch.ones_like(t),
)

GVP = Path(
    "gvp",
    alpha=lambda t: torch.sin(t * (math.pi / 2)),
    sigma=lambda t: torch.cos(t * (math.pi / 2)),
    alpha_slope=lambda t: torch.cos(t * (math.pi / 2)) * (math.pi / 2),
    sigma_slope=lambda t: torch.sin(t * (math.pi / 2)) * (-math.pi / 2),
)

_BETA_MIN, _BETA_MAX = 0.1, 20.0


def _vp_log_alpha(t: Tensor) -> Tensor:
    return -0.25 * (1 - t) ** 2 * (_BETA_MAX - _BETA_MIN) - 0.5 * (1 - t) * _BETA_MIN


def _vp_log_alpha_slope(t: Tensor) -> Tensor:
    return 0.5 * (1 - t) * (_BETA_MAX - _BETA_MIN) + 0.5 * _BETA_MIN


def _vp_sigma(t: Tensor) -> Tensor:
    return torch.sqrt(-torch.expm1(2 * _vp_log_alpha(t)))


# Its sigma falls like a square root towards time 1, where its slope is not defined.
VP = Path(
    "vp",
    alpha=lambda t: torch.exp(_vp_log_alpha(t)),
    sigma=_vp_sigma,
    alpha_slope=lambda t: torch.exp(_vp_log_alpha(t)) * _vp_log_alpha_slope(t),
    sigma_slope=lambda t: -torch.exp(2 * _vp_log_alpha(t)) * _vp_log_alpha_slope(t) / _vp_sigma(t),
)

PATHS: dict[str, Path] = {path.name: path for path in (LINEAR, GVP, VP)}
