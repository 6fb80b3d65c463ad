"""What is measured is what the library does: the same functions, and operations counted as they are done."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dcae_core.benchmarking.bench import run_benchmarks
from dcae_core.benchmarking.headline import HeadlineSettings, headline_config, measure_headline
from dcae_core.benchmarking.networks import NamedDenoiser, open_autoencoder, random_denoiser
from dcae_core.benchmarking.subjects import BenchSettings, autoencoder_subjects, denoiser_step, denoiser_subjects
from dcae_core.devices import ProcessorFamily
from dcae_core.errors import UsageError
from dcae_core.models.complexity import denoiser_complexity
from dcae_core.models.configs import UViTConfig
from tests.diffusion_models import write_diffusion

CPU = torch.device("cpu")
SETTINGS = BenchSettings(CPU, torch.float32, resolution=64, repeats=1)
SMALL = UViTConfig(input_size=8, in_channels=4, hidden_size=32, depth=2, num_heads=2, num_classes=10)


def operations(call) -> int:
    """Multiply-accumulates that a call really makes; attention as products, since its CPU kernel is not counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def opened(config: UViTConfig = SMALL) -> NamedDenoiser:
    return NamedDenoiser("small", random_denoiser(config, CPU, torch.float32), config, "epsilon", None, True)


def test_plain_and_prepared_autoencoder_give_the_same_and_count_what_the_definition_has() -> None:
    settings = BenchSettings(CPU, torch.float32, resolution=64, batch=2, against=("plain",))
    (encode, decode, _), notes = autoencoder_subjects(["encode", "decode", "reconstruct"], settings)
    assert notes == []  # the embedded weights
    for subject in (encode, decode):
        prepared, plain = (contestant.call() for contestant in subject.contestants)
        assert torch.dist(prepared, plain) / plain.norm() < 1e-5
        assert subject.macs == operations(subject.contestants[1].call)


def test_diffusers_computes_the_same_with_the_same_weights_in_the_same_memory() -> None:
    pytest.importorskip("diffusers")
    from dcae_core.benchmarking.networks import diffusers_peer
    from tests.small import SMALL_CONFIGS, small_autoencoder

    ours = small_autoencoder(**{k: getattr(SMALL_CONFIGS["1.5"], k) for k in ("head_act", "latent_shortcuts")})
    peer = diffusers_peer(ours)
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        assert torch.dist(peer.encode(x).latent, ours.encode(x)) < 1e-4 * ours.encode(x).norm()
    assert peer.encoder.conv_out.weight.data_ptr() == ours.encoder.head.conv.weight.data_ptr()


def test_what_diffusers_cannot_express_is_said() -> None:
    settings = BenchSettings(CPU, torch.float32, resolution=64, against=("diffusers",))
    with pytest.raises(UsageError, match="AutoencoderDC"):
        autoencoder_subjects(["encode"], settings)


def test_transformed_weights_count_as_held_and_plain_has_none(monkeypatch) -> None:
    family = ProcessorFamily("Intel", "AVX-512")  # whose rule takes Winograd at this size
    monkeypatch.setattr("dcae_core.models.inference.processor_family", lambda: family)
    parameters = sum(weight.nbytes for weight in open_autoencoder(None, CPU, torch.float32).network.parameters())
    settings = BenchSettings(CPU, torch.float32, resolution=256, against=("plain",))
    (subject,), _ = autoencoder_subjects(["encode"], settings)
    for contestant in subject.contestants:
        contestant.call()
    prepared, plain = (contestant.held_bytes() for contestant in subject.contestants)
    assert plain == pytest.approx(parameters, rel=1e-3)
    assert prepared > 1.4 * parameters


def test_a_training_step_trains_and_counts_three_forward_passes(tmp_path) -> None:
    network = opened()
    before = [weight.clone() for weight in network.network.parameters()]
    subject = denoiser_step(network, BenchSettings(CPU, torch.float32, batch=4), tmp_path)
    subject.contestants[0].call()
    moved = [not torch.equal(a, b) for a, b in zip(before, network.network.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    counted = operations(subject.contestants[0].call)
    assert counted <= subject.macs <= 1.1 * counted  # nothing asks for the gradient of the first layer's input
    parameters = sum(weight.nbytes for weight in network.network.parameters())
    assert subject.contestants[0].held_bytes() == pytest.approx(
        4 * parameters, rel=0.01
    )  # weights, average, Adam's two


def test_sampling_counts_guidance_and_decoding(tmp_path) -> None:
    write_diffusion(tmp_path / "model")
    settings = BenchSettings(
        CPU, torch.float32, model=str(tmp_path / "model"), batch=3, num_steps=4, guidance_scale=2.0
    )
    (denoise, sample), _ = denoiser_subjects(["denoise", "sample"], settings)
    assert denoise.macs == operations(denoise.contestants[0].call)
    assert "8 evaluations each" in sample.setting
    decoder_and_denoiser = operations(sample.contestants[0].call)
    assert sample.macs == pytest.approx(decoder_and_denoiser, rel=1e-6)


def test_the_headline_is_the_papers_pair_of_networks() -> None:
    f8, f64 = headline_config("f8"), headline_config("f64")
    assert (f8.latent_size, f8.in_channels, f8.grid) == ((64, 64), 4, (32, 32))
    assert (f64.latent_size, f64.in_channels, f64.grid) == ((8, 8), 128, (8, 8))
    assert denoiser_complexity(f64).num_parameters == pytest.approx(500.87e6, rel=1e-4)  # the released UViT-H on f64
    assert 16 < denoiser_complexity(f8).macs / denoiser_complexity(f64).macs < 20


def test_headline_throughput_is_told_for_thirty_evaluations() -> None:
    headline = measure_headline(HeadlineSettings(evaluations=3, small=True, batch=1), SETTINGS)
    slow = headline.measurements["infer", "f8"]
    assert headline.images_per_second("infer", "f8") == pytest.approx(slow.items_per_second / 10)
    assert headline.images_per_second("train", "f64") == headline.measurements["train", "f64"].items_per_second
    fast = headline.images_per_second("train", "f64") / headline.images_per_second("train", "f8")
    assert headline.ratio("train") == pytest.approx(fast)
    assert slow.subject.macs == 3 * denoiser_complexity(headline_config("f8", small=True)).macs


def test_networks_are_let_go_before_the_next_ones_come() -> None:
    measurements, _ = run_benchmarks(["encode", "latent-reading"], SETTINGS)
    assert [measurement.subject.what for measurement in measurements] == ["encode", "latent-reading"]
    assert all(not measurement.subject.contestants for measurement in measurements)
    assert measurements[1].flops is None
