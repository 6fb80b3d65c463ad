"""Descriptions of networks and datasets: counted and proved before anything is built or read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.diffusion_models import write_diffusion
from tests.hostile.child import MIB, run_dcae
from tests.hostile.material import write
from tests.latents.datasets import write_dataset
from tests.small import small_config

DIGITS = "9" * 5000
NESTED = "[" * 100_000


def described(config: dict, **more: object) -> dict:
    return {"layout": "dcae", "config": config, "weights": {}, "scaling_factor": 1.0} | more


def a_config(**changes: object) -> dict:
    return json.loads(json.dumps(small_config().to_dict())) | changes


AUTOENCODERS = {
    "a scaling factor of 10^400": json.dumps(described(a_config(), scaling_factor=10**400)),
    "a scaling factor of 5,000 digits": json.dumps(described(a_config(), scaling_factor="?")).replace('"?"', DIGITS),
    "nested deeply": NESTED,
    "1,000 attention scales": json.dumps(
        described(a_config(decoder_widths=[1024] * 3, decoder_attention_scales=[[], [], [5] * 1000]))
    ),
    "1,000 scales in each of 1,000 blocks": json.dumps(
        described(
            a_config(
                decoder_widths=[1024] * 3,
                decoder_depths=[1, 1, 1000],
                decoder_attention_scales=[[], [], [5] * 1000],
            )
        )
    ),
    "a thousand blocks in every stage": json.dumps(
        described(a_config(encoder_depths=[1000] * 3, decoder_depths=[1000] * 3))
    ),
    "65,536 channels": json.dumps(
        described(a_config(encoder_widths=[65536] * 3, decoder_widths=[65536] * 3, decoder_depths=[99] * 3))
    ),
    "a million layers": json.dumps(described(a_config(encoder_depths=[10**6] * 3))),
}


@pytest.mark.parametrize("case", AUTOENCODERS)
def test_an_autoencoder_that_cannot_be_is_refused_at_once(tmp_path, case) -> None:
    write(tmp_path / "model" / "dcae.json", AUTOENCODERS[case])
    run = run_dcae("convert", tmp_path / "model", "--to", "dcae", "-o", tmp_path / "out")
    run.assert_fails(3, "dcae.json")
    assert run.peak < 300 * MIB
    assert run.seconds < 60
    assert len(run.stderr) < 2000


@pytest.mark.parametrize(
    "changes",
    [
        {"scaling_factor": 10**400},
        {"encoder_layers_per_block": [10**6] * 6},
        {"decoder_qkv_multiscales": [[], [], [], [5] * 1000, [5] * 1000, [5] * 1000]},
        {"encoder_block_out_channels": 3},
        {"encoder_block_types": {"a": 1}},
        {"latent_channels": "32"},
        {"encoder_qkv_multiscales": [[[[]]]] * 6},
    ],
)
def test_a_diffusers_config_that_cannot_be_is_refused_at_once(tmp_path, changes) -> None:
    write(tmp_path / "model" / "config.json", json.dumps({"_class_name": "AutoencoderDC"} | changes))
    write(tmp_path / "model" / "diffusion_pytorch_model.safetensors", save({"a": torch.zeros(1)}))
    run = run_dcae("convert", tmp_path / "model", "--to", "dcae", "-o", tmp_path / "out")
    run.assert_fails(3)
    assert run.peak < 300 * MIB
    assert run.seconds < 60


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 65536, "depth": 1000},
        {"num_classes": 1 << 29},
        {"input_size": 1 << 20},
        {"depth": 10**6},
        {"depth": 10**400},
        {"num_heads": 0},
    ],
)
def test_a_diffusion_network_that_cannot_be_is_refused_at_once(tmp_path, changes) -> None:
    model = write_diffusion(tmp_path / "model")
    description = json.loads((model / "dcae.json").read_text())
    description["diffusion"]["config"] |= changes
    (model / "dcae.json").write_text(json.dumps(description))
    run = run_dcae("sample", "--model", model, "--num", 1, "-o", tmp_path / "out")
    run.assert_fails(3, str(model))
    assert run.peak < 300 * MIB
    assert run.seconds < 60


@pytest.mark.parametrize("content", [NESTED, f'{{"version": {DIGITS}}}', "", "null", '{"a": NaN}', "\ud800"])
def test_a_manifest_that_is_no_json_is_refused(tmp_path, content) -> None:
    write_dataset(tmp_path / "latents", [3])
    (tmp_path / "latents" / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    run_dcae("encode-dataset", "--verify", tmp_path / "latents").assert_fails(3, "manifest.json")


@pytest.mark.parametrize("header", [NESTED, f'{{"latents": {DIGITS}}}', '{"latents": {"shape": [1e999]}}'])
def test_a_shard_whose_header_is_no_header_is_refused(tmp_path, header) -> None:
    from dcae_core.data.latents.shard import parse_header
    from dcae_core.errors import DataError

    with pytest.raises(DataError, match="shard-0"):
        parse_header(header.encode(), "shard-0", dtype="float16", latent_shape=(4, 2, 3))


@pytest.mark.parametrize("shape", [(8, 0, 0), (8, 0, 3), (8, 3, 0), (0, 2, 2)])
def test_latents_without_positions_are_refused(model: Path, tmp_path, shape) -> None:
    for name, tensors in {
        "samples": {"latents": torch.zeros(2, *shape)},
        "one": {"latent": torch.zeros(shape)},
        "none": {"latents": torch.zeros(0, 8, 2, 2)},
    }.items():
        metadata = {"model": "", "fingerprint": "x", "height": "1", "width": "1", "tile": ""}
        path = write(tmp_path / f"{name}.safetensors", save(tensors, metadata))
        run_dcae("decode", path, "--model", model, "-o", tmp_path / "out").assert_fails(3, path.name)


@pytest.mark.parametrize(
    "changes", [{"tile": "-5"}, {"tile": "1"}, {"tile": DIGITS}, {"height": "1e9"}, {"width": "0"}]
)
def test_a_latents_description_is_proved(model: Path, tmp_path, changes) -> None:
    from dcae_core.checkpoints import load_autoencoder
    from dcae_core.weights import fingerprint

    own = fingerprint(load_autoencoder(model, prepare=False))
    metadata = {"model": "", "fingerprint": own, "height": "8", "width": "8", "tile": ""} | changes
    path = write(tmp_path / "a.latent.safetensors", save({"latent": torch.zeros(8, 2, 2)}, metadata))
    run_dcae("decode", path, "--model", model, "-o", tmp_path / "out").assert_fails(3, "a.latent.safetensors")


def test_a_long_latent_shows_that_it_is_at_work(model: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("dcae_cli.progress.SECONDS_BETWEEN_LINES", 0)
    path = write(tmp_path / "long.safetensors", save({"latents": torch.zeros(1, 8, 1, 5_000)}))
    run = run_dcae("decode", path, "--model", model, "--tile", 4096, "-o", tmp_path / "out")
    assert run.exit_code == 0, run.stderr
    run.assert_clean()
    assert "tile 2/" in run.stderr
