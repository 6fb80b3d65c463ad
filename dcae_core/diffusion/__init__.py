"""Diffusion as functions of callables: schedules, paths, objectives, guidance, samplers. No network is known here."""

from dcae_core.diffusion.ddpm import sample_ddim, sample_ddpm
from dcae_core.diffusion.dopri5 import sample_dopri5
from dcae_core.diffusion.dpm_solver import sample_dpm_solver, sample_dpm_solver_multistep
from dcae_core.diffusion.guidance import guide
from dcae_core.diffusion.noise import sample_noise
from dcae_core.diffusion.objectives import OBJECTIVES
from dcae_core.diffusion.ode import sample_euler, sample_heun
from dcae_core.diffusion.samplers import SAMPLERS, run_sampler
from dcae_core.diffusion.sde import sample_euler_maruyama

__all__ = [
    "OBJECTIVES",
    "SAMPLERS",
    "guide",
    "run_sampler",
    "sample_ddim",
    "sample_ddpm",
    "sample_dopri5",
    "sample_dpm_solver",
    "sample_dpm_solver_multistep",
    "sample_euler",
    "sample_euler_maruyama",
    "sample_heun",
    "sample_noise",
]
