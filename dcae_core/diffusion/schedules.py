"""Variance-preserving noise schedules: x_t = alpha(t) * data + sigma(t) * noise with alpha^2 + sigma^2 = 1.

Everything here is float64 on the CPU: samplers turn it into plain numbers before their loop starts.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
