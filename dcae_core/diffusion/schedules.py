"""How much data and how much noise a state holds at each time: discrete schedules, and the straight path."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
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

    def network_time(self, t: ArrayLike) -> NDArray[np.float64]:
        """Time in [1 / N, 1] -> what the network is given."""
        return self.num_timesteps * np.asarray(t, dtype=np.float64) - 1 + self.first_timestep


def scaled_linear_schedule(num_timesteps: int = 1000) -> DiscreteSchedule:
    """Betas whose square roots rise evenly from sqrt(0.00085) to sqrt(0.012): latent diffusion's, and U-ViT's."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, num_timesteps) ** 2 * (1000 / num_timesteps)
    return DiscreteSchedule(betas, first_timestep=1)


def linear_schedule(num_timesteps: int = 1000) -> DiscreteSchedule:
    """Betas that rise evenly from 1e-4 to 0.02 (arXiv 2006.11239): DDPM's, and DiT's."""
    return DiscreteSchedule(np.linspace(1e-4, 0.02, num_timesteps) * (1000 / num_timesteps), first_timestep=0)


def _interpolate(
    x: NDArray[np.float64], knots: NDArray[np.float64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Piecewise linear; the outermost segments go on beyond the ends."""
    segment = np.clip(np.searchsorted(knots, x) - 1, 0, len(knots) - 2)
    slope = (values[segment + 1] - values[segment]) / (knots[segment + 1] - knots[segment])
    return values[segment] + slope * (x - knots[segment])


def over_samples(t: Tensor, x: Tensor) -> Tensor:
    """Times (B,) shaped to multiply states (B, C, H, W); a 0-d time stays as it is."""
    return t if t.dim() == 0 else t.reshape(-1, *[1] * (x.dim() - 1))


def linear_state(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t of the straight path from noise at time 0 to data at time 1; t in [0, 1], 0-d or (B,).

    Source: SiT (arXiv 2401.08740), section 2 and table 1 ("Linear").
    """
    t = over_samples(t, data)
    return t * data + (1 - t) * noise


def linear_velocity(data: Tensor, noise: Tensor) -> Tensor:
    """dx_t/dt of the straight path, the same at every time."""
    return data - noise


def noise_from_linear_velocity(velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The noise that x_t and its velocity stand for on the straight path."""
    t = over_samples(t, x)
    return (t * velocity - x) / (-t - (1 - t))
