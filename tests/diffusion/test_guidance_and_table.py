"""Guidance, the table of samplers, noise by seed and number, and the objectives' own rules."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dcae_core.diffusion import OBJECTIVES, SAMPLERS, guide, run_sampler, sample_noise
from dcae_core.diffusion.samplers import DEFAULT_SAMPLERS, find_sampler
from dcae_core.errors import UsageError
from tests.denoisers import random_denoiser
from tests.golden import golden_noise

CLASSES = torch.tensor([1, 2, 3])


def class_number(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Predicts its class everywhere, and minus its class as variance."""
    value = y.to(x.dtype)[:, None, None, None].expand_as(x)
    return torch.cat([value, -value], dim=1)


def test_guidance_mixes_the_prediction_and_keeps_the_variance() -> None:
    x = torch.zeros(3, 2, 4, 4)
    output = guide(class_number, CLASSES, 10, 3.0)(x, torch.tensor(5.0))
    assert output[:, :2].mean(dim=(1, 2, 3)).tolist() == [10 + 3 * (y - 10) for y in (1, 2, 3)]
    assert torch.equal(output[:, 2:], class_number(x, torch.tensor(5.0), CLASSES)[:, 2:])


def test_guidance_outside_its_interval_and_of_scale_1_costs_one_evaluation() -> None:
    rows = []

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        rows.append(len(x))
        return class_number(x, t, y)

    x = torch.zeros(3, 2, 4, 4)
    guided = guide(model, CLASSES, 10, 3.0, interval=(100, 500))
    outputs = [guided(x, torch.tensor(t)) for t in (99.0, 100.0, 500.0, 501.0)]
    guide(model, CLASSES, 10, 1.0)(x, torch.tensor(300.0))
    assert rows == [3, 6, 6, 3, 3]
    assert torch.equal(outputs[0], outputs[3])
    assert not torch.equal(outputs[0], outputs[1])


def test_a_sampler_that_does_not_fit_names_those_that_do() -> None:
    with pytest.raises(UsageError, match="dopri5, heun, euler, euler-maruyama do"):
        find_sampler("ddim", "velocity")
    with pytest.raises(UsageError, match=r"dpm-solver.*ddpm do"):
        find_sampler("heun", "epsilon")
    with pytest.raises(UsageError, match="did you mean heun"):
        find_sampler("huen", "velocity")
    with pytest.raises(UsageError, match="chooses its own steps"):
        run_sampler(None, lambda x, t: x, torch.zeros(1, 1, 2, 2), prediction="velocity", num_steps=10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_refuses_zero_steps_and_reports_progress(name) -> None:
    sampler = SAMPLERS[name]
    prediction = sampler.predictions[0]
    noise = golden_noise("x", (2, 1, 4, 4))
    if sampler.num_steps is not None:
        for steps in (0, -1):
            with pytest.raises(UsageError, match="step"):
                run_sampler(name, lambda x, t: 0 * x, noise, prediction=prediction, num_steps=steps)
    seen: list[tuple[int, int]] = []
    steps = None if sampler.num_steps is None else 7
    report = lambda step, total: seen.append((step, total))  # noqa: E731
    sample = run_sampler(name, lambda x, t: 0.1 * x, noise, prediction=prediction, num_steps=steps, progress=report)
    assert sample.shape == noise.shape
    assert seen[-1][0] == seen[-1][1]
    assert [step for step, _ in seen] == sorted({step for step, _ in seen})


@pytest.mark.parametrize("name", SAMPLERS)
def test_times_are_single_numbers_within_the_networks_range(name) -> None:
    times = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        assert t.dim() == 0
        times.append(float(t))
        return 0.1 * x

    sampler = SAMPLERS[name]
    run_sampler(name, model, golden_noise("x", (1, 1, 4, 4)), prediction=sampler.predictions[-1])
    lowest, highest = (0, 1) if "velocity" in sampler.predictions else (0, 999)
    assert min(times) >= lowest
    assert name == "dopri5" or max(times) <= highest  # its last step may pass the end


class Waits(TorchDispatchMode):
    """Counts how often a value is read back from a tensor: on an accelerator each waits for all work before it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", SAMPLERS)
def test_fixed_step_loops_never_wait_for_the_device(name) -> None:
    sampler = SAMPLERS[name]
    model = guide(lambda x, t, y: 0.1 * x * t, torch.tensor([1]), 2, 1.5)
    noise = golden_noise("x", (1, 1, 4, 4))
    with Waits() as waits:
        run_sampler(name, model, noise, prediction=sampler.predictions[0])
    assert (waits.count == 0) == (sampler.num_steps is not None)


def test_defaults_are_the_published_samplers() -> None:
    assert DEFAULT_SAMPLERS == {"epsilon": "dpm-solver", "epsilon_variance": "ddpm", "velocity": "dopri5"}
    assert all(prediction in SAMPLERS[name].predictions for prediction, name in DEFAULT_SAMPLERS.items())


def test_noise_depends_on_seed_and_number_alone() -> None:
    several = sample_noise(3, [0, 5, 6], (2, 4, 4))
    assert torch.equal(several[1:2], sample_noise(3, [5], (2, 4, 4)))
    others = [sample_noise(4, [5], (2, 4, 4)), sample_noise(3, [7], (2, 4, 4)), sample_noise(3, [5], (2, 4, 4), step=0)]
    assert all(not torch.equal(several[1:2], other) for other in others)
    many = sample_noise(0, range(200), (4, 8, 8))
    assert abs(float(many.mean())) < 0.02
    assert abs(float(many.std()) - 1) < 0.02
    with pytest.raises(UsageError, match="seed"):
        sample_noise(-1, [0], (1,))


@pytest.mark.parametrize("prediction", OBJECTIVES)
def test_drawn_times_cover_the_networks_range(prediction) -> None:
    times = OBJECTIVES[prediction].draw_times(20_000, torch.Generator().manual_seed(0))
    lowest, highest = {"epsilon": (1, 1000), "velocity": (0, 1), "epsilon_variance": (0, 999)}[prediction]
    assert lowest <= times.min() < lowest + (highest - lowest) / 100
    assert highest >= times.max() > highest - (highest - lowest) / 100


@pytest.mark.parametrize("prediction", OBJECTIVES)
def test_each_objective_is_least_for_the_exact_prediction(prediction) -> None:
    """Whoever knows data and noise predicts with no error; the variance then only has its bound left."""
    objective = OBJECTIVES[prediction]
    data, noise = golden_noise("data", (4, 2, 4, 4)), golden_noise("eps", (4, 2, 4, 4))
    times = objective.draw_times(4, torch.Generator().manual_seed(1))
    target = {"velocity": data - noise}.get(prediction, noise)
    output = torch.cat([target, -torch.ones_like(target)], dim=1) if prediction == "epsilon_variance" else target
    right = objective.losses(lambda x, t: output, data, noise, times)
    wrong = objective.losses(lambda x, t: output + 0.1, data, noise, times)
    assert right["loss"].shape == (4,)
    assert right["loss"].max() < 1e-3
    assert (wrong["loss"] > right["loss"] + 0.009).all()


def test_the_variational_bound_trains_the_variance_alone() -> None:
    network = random_denoiser("dit")
    x, y = golden_noise("x", (2, 4, 8, 8)), torch.tensor([1, 2])
    predictions = []

    def model(state: Tensor, t: Tensor) -> Tensor:
        predictions.append(network(state, t, y).detach().requires_grad_())
        return predictions[-1]

    losses = OBJECTIVES["epsilon_variance"].losses(model, x, golden_noise("eps", x.shape), torch.tensor([3, 700]))
    losses["vb"].sum().backward()
    gradient = predictions[0].grad
    assert not gradient[:, :4].any()
    assert gradient[:, 4:].any()
