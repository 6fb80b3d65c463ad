"""What commands run on a GPU, on a GPU that computes nothing: no tensor is left behind, nothing waits that need not."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from dcae_core import create_denoiser
from dcae_core.data.batches import Batch
from dcae_core.diffusion.guidance import guide
from dcae_core.diffusion.samplers import SAMPLERS, guidance_times, run_sampler
from dcae_core.metrics.inception import InceptionExtractor
from dcae_core.metrics.inception_network import InceptionV3
from dcae_core.metrics.lpips import LPIPS
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.inference import prepare_for_inference
from dcae_core.models.normalisation import ChannelNormalisation
from dcae_core.pipelines.evaluation.parts import FeatureMeasurement, ReconstructionMeasurement
from dcae_core.pipelines.tiling import decode_latent, encode_pixels
from dcae_core.recipes.settings import ExecutionSettings
from dcae_core.recipes.train_ae import PhaseSettings
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.loop import Loop, LoopSettings, StopSignals, loss_scaler
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.task import Progress, SilentLogger, Task
from dcae_core.training.train_ae import AutoencoderTask
from dcae_core.training.train_diffusion import DiffusionBatch, DiffusionTask
from tests.fake_gpu import FakeGpu, WaitedForGpuError, needs_cuda_build, to_fake_gpu
from tests.small import SMALL_CONFIGS, small_config

pytestmark = needs_cuda_build

DTYPES = [torch.float32, torch.bfloat16]


def small_denoiser(architecture: str = "uvit", **settings: Any) -> nn.Module:
    shape = {"input_size": 8, "in_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    return create_denoiser(architecture, **shape | settings)


def autoencoder_on_gpu(dtype: torch.dtype = torch.float32, name: str = "1.0") -> Autoencoder:
    network = Autoencoder(SMALL_CONFIGS[name]).eval()
    return to_fake_gpu(prepare_for_inference(network).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_autoencoders_stay_on_the_gpu(name: str, dtype: torch.dtype) -> None:
    with FakeGpu(may_wait=False), torch.inference_mode():
        network = autoencoder_on_gpu(dtype, name)
        decoded = network.decode(network.encode(torch.rand(2, 3, 64, 64, device="cuda", dtype=dtype)))
        assert (decoded.device.type, decoded.dtype) == ("cuda", dtype)


def test_tiles_are_brought_back_one_by_one() -> None:
    with FakeGpu() as gpu:
        network = autoencoder_on_gpu()
        latent = encode_pixels(network, torch.zeros(3, 150, 150, dtype=torch.uint8), tile=64)
        num_tiles = gpu.waits
        pixels = decode_latent(network, latent, (150, 150), tile=64)
    assert (latent.device.type, pixels.device.type) == ("cpu", "cpu")
    assert num_tiles == 9
    assert gpu.waits == 2 * num_tiles


def sample(model: nn.Module, name: str, prediction: str, interval: tuple[float, float] | None = None) -> Tensor:
    """A whole guided sampling run from noise that is made on the CPU."""
    bounds = guidance_times(prediction, interval) if interval else None
    noise = torch.zeros(2, 4, 8, 8)
    classes = torch.tensor([1, 2], device="cuda")
    with torch.inference_mode():
        return run_sampler(
            name,
            guide(model, classes, 10, 2.0, bounds),
            noise.to("cuda"),
            prediction=prediction,
            num_steps=4 if SAMPLERS[name].num_steps else None,
            step_noise=lambda step=None: noise,
            breaks=bounds or (),
        )


WAYS = [(name, prediction) for name, sampler in SAMPLERS.items() for prediction in sampler.predictions]
FIXED_STEPS = [(name, prediction) for name, prediction in WAYS if name != "dopri5"]


def denoiser_for(prediction: str) -> nn.Module:
    return small_denoiser("dit" if prediction == "epsilon_variance" else "uvit")


@pytest.mark.parametrize(("name", "prediction"), FIXED_STEPS)
def test_samplers_of_fixed_steps_do_not_wait(name: str, prediction: str) -> None:
    model = denoiser_for(prediction)
    with FakeGpu(may_wait=False):
        assert sample(to_fake_gpu(model), name, prediction).device.type == "cuda"


def test_a_sampler_that_chooses_its_steps_reads_them() -> None:
    model = denoiser_for("velocity")
    with FakeGpu(may_wait=False), pytest.raises(WaitedForGpuError):
        sample(to_fake_gpu(model), "dopri5", "velocity")


@pytest.mark.parametrize(("name", "prediction"), FIXED_STEPS)
def test_an_interval_costs_one_read_for_each_evaluation(name: str, prediction: str) -> None:
    model, evaluations = denoiser_for(prediction), []
    model.register_forward_pre_hook(lambda *_: evaluations.append(1))
    with FakeGpu() as gpu:
        sample(to_fake_gpu(model), name, prediction, (0.2, 0.8))
    assert gpu.waits == len(evaluations)


class _Waiting(nn.Module):
    """A network with a fault that costs time on a GPU and nothing elsewhere."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.fault = fault

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if self.fault == "item" and x.square().mean().item() > 1e6:
            return x
        if self.fault == "cpu":
            x = x.cpu().to("cuda")
        return (x.cpu() if self.fault == "stays" else x) * self.weight * torch.ones_like(x)


@pytest.mark.parametrize("fault", ["item", "cpu"])
def test_a_planted_wait_is_seen(fault: str) -> None:
    with FakeGpu(may_wait=False):
        sample(to_fake_gpu(_Waiting("none")), "heun", "velocity")
        with pytest.raises(WaitedForGpuError):
            sample(to_fake_gpu(_Waiting(fault)), "heun", "velocity")


def test_a_tensor_left_on_the_cpu_is_seen() -> None:
    with FakeGpu(), pytest.raises(RuntimeError, match="two devices"):
        sample(to_fake_gpu(_Waiting("stays")), "heun", "velocity")


@pytest.mark.parametrize("metrics", [("psnr", "ssim"), ("fid",)])
def test_measurements_come_back_to_the_cpu(metrics: tuple[str, ...]) -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with FakeGpu():
        features = FeatureMeasurement(InceptionExtractor(to_fake_gpu(InceptionV3()), ""), with_logits=True)
        measure = ReconstructionMeasurement(
            autoencoder_on_gpu(),
            metrics,
            lpips=to_fake_gpu(LPIPS("alex")),
            features=features,
            with_original_features=True,
        )
        rows = measure(images)
    assert {"lpips", "features", "original_features", "logits", *set(metrics) - {"fid"}} <= set(rows)
    assert {tensor.device.type for tensor in rows.values()} == {"cpu"}


def loop_over(task: Task, run_dir: Path, accumulation: int) -> Loop:
    settings = LoopSettings(
        phase="full",
        steps=2,
        total_steps=2,
        batch_size=4,
        accumulation=accumulation,
        checkpoint_every=1,
        validate_every=None,
        log_every=1,
    )
    scaler = loss_scaler(torch.device("cuda"), "fp32")
    return Loop(task, settings, RunDirectory(run_dir), Progress(), scaler, StopSignals(), SilentLogger(), 1)


@pytest.fixture
def zero_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward passes give every weight of the loss's network a gradient on its device."""

    def backward(loop: Loop, batch: Any, meter: Any) -> Tensor:
        bad_losses = accumulate(loop, batch, meter)
        for trained in loop.task.networks.values():
            for parameter in trained.network.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        return bad_losses

    accumulate = Loop._accumulate
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    monkeypatch.setattr(Tensor, "backward", lambda *_: None)
    monkeypatch.setattr(Loop, "_accumulate", backward)


OPTIMISER = {"learning_rate": 1e-4, "clip_gradient_norm": 1.0}
GAN = {
    "weight": 0.1,
    "adaptive": False,  # it asks autograd
    "optimiser": {"learning_rate": 1e-4},
    "discriminator": {"width": 8, "num_layers": 1},
}
PHASES: dict[str, dict[str, Any]] = {
    "full": {"losses": {"l1": 1.0, "ssim": 0.1, "gradient": 0.1}},
    "latent_adaptation": {"losses": {"mse": 1.0}, "train": ["encoder_head", "decoder_stem"], "latent_channels": [4, 8]},
    "local_refinement": {"losses": {"l1": 1.0, "adversarial": GAN}, "train": ["decoder_head"]},
}


@pytest.mark.usefixtures("zero_gradients")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_of_every_autoencoder_phase(phase: str, accumulation: int, tmp_path: Path) -> None:
    shape = {"resolution": 64, "batch_size": 4, "accumulation": accumulation, "steps": 2, "optimiser": OPTIMISER}
    settings = PhaseSettings.model_validate({"name": phase} | shape | PHASES[phase])
    batch = Batch(torch.zeros(4 // accumulation, 3, 64, 64, dtype=torch.uint8), ("a",) * (4 // accumulation), (), 0.0)
    with FakeGpu(may_wait=False):
        network = to_fake_gpu(Autoencoder(small_config()))
        task = AutoencoderTask(network, settings, (0, 0), ExecutionSettings(), None)
        loop = loop_over(task, tmp_path, accumulation)
        meter, _ = loop.step(iter([batch] * accumulation))
        assert loop._unsettled is meter
        assert {value.device.type for name, value in meter.terms.items() if "rate" not in name} == {"cuda"}


@pytest.mark.usefixtures("zero_gradients")
@pytest.mark.parametrize("objective", ["epsilon", "velocity", "epsilon_variance"])
def test_a_step_of_every_objective(objective: str, tmp_path: Path) -> None:
    with FakeGpu(may_wait=False):
        step_twice(to_fake_gpu(denoiser_for(objective)), objective, tmp_path)


@pytest.mark.usefixtures("zero_gradients")
@pytest.mark.parametrize("fault", ["item", "cpu"])
def test_a_planted_wait_in_a_step_is_seen(fault: str, tmp_path: Path) -> None:
    with FakeGpu(may_wait=False):
        step_twice(to_fake_gpu(_Waiting("none")), "velocity", tmp_path)
        with pytest.raises(WaitedForGpuError):
            step_twice(to_fake_gpu(_Waiting(fault)), "velocity", tmp_path)


def step_twice(network: nn.Module, objective: str, run_dir: Path) -> None:
    """Two training steps, of which the second begins before the first is known to count."""
    architecture = "dit" if objective == "epsilon_variance" else "uvit"
    recipe = TrainDiffusionRecipe.model_validate(
        {
            "command": "train-diffusion",
            "run_dir": str(run_dir),
            "latents": "nowhere",
            "network": {"architecture": architecture, "hidden_size": 32, "depth": 2, "num_heads": 2},
            "objective": objective,
            "steps": 2,
            "batch_size": 4,
            "optimiser": OPTIMISER,
            "augmentation": {"channels": [2, 4], "weight": 0.5} if objective == "velocity" else None,
        }
    )
    numbers = torch.arange(4)
    batch = DiffusionBatch(
        latents=torch.zeros(4, 4, 8, 8, dtype=torch.float16),
        labels=numbers,
        noise=torch.zeros(4, 4, 8, 8),
        times=torch.full((4,), 0.5) if objective == "velocity" else numbers,
        channels=torch.tensor([2, 4, 2, 4]) if objective == "velocity" else None,
        names=("a",) * 4,
        worker_seconds=0.0,
    )
    normalisation = ChannelNormalisation.of([0.0] * 4, [1.0] * 4)
    loop = loop_over(DiffusionTask(network, recipe, 0.5, None, normalisation), run_dir, 1)
    for _ in range(2):
        loop.step(iter([batch]))
