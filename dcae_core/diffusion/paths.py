"""Paths between noise at time 0 and data at time 1: x_t = alpha(t) * data + sigma(t) * noise.

A network that knows the velocity dx/dt of a path knows its noise, data and score as well, and the other way round.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
