"""Diffusion as functions of callables: schedules, paths, objectives, guidance, samplers. No network is known here."""

from dcae_core.diffusion.dopri5 import sample_dopri5
from dcae_core.diffusion.guidance import guide, sample_noise
from dcae_core.diffusion.objectives import OBJECTIVES
from dcae_core.diffusion.samplers import SAMPLERS, run_sampler
from dcae_core.diffusion.solvers import (
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
    sample_dpm_solver_multistep,
    sample_euler,
    sample_euler_maruyama,
    sample_heun,
)

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
