"""DINOv2 beside transformers where that is installed, and against what must hold of it anyway."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcae_core.checkpoints.vision_encoders import load_vision_encoder
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.dinov2 import DinoV2, DinoV2Config
from tests.small import randomise
from tests.vision_encoders import SMALL, write_vision_encoder


def images(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("side", [56, 28, 84])
def test_features_are_those_of_transformers(tmp_path: Path, side: int) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.Dinov2Model.from_pretrained(write_vision_encoder(tmp_path / "dino")).eval()
    x = images(side)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = ((x + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        theirs = peer(seen).last_hidden_state[:, 1:]
        ours = load_vision_encoder(str(tmp_path / "dino"))(x)
    torch.testing.assert_close(ours.flatten(2).transpose(1, 2), theirs, rtol=1e-4, atol=1e-4)


def test_without_blocks_features_are_normed_patches_at_their_places() -> None:
    network = DinoV2(DinoV2Config(**SMALL))
    randomise(network)
    for block in network.encoder["layer"].children():
        block.layer_scale1.lambda1.zero_()
        block.layer_scale2.lambda1.zero_()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = images(56)
    weights = network.embeddings.patch_embeddings["projection"]
    row, column = 1, 2
    patch = ((x + 1) / 2 - mean) / std
    patch = patch[..., 14 * row : 14 * row + 14, 14 * column : 14 * column + 14].flatten(1)
    token = (
        patch @ weights.weight.flatten(1).T
        + weights.bias
        + network.embeddings.position_embeddings[0, 1 + 4 * row + column]
    )
    expected = torch.nn.functional.layer_norm(token, (16,), network.layernorm.weight, network.layernorm.bias, 1e-6)
    torch.testing.assert_close(network(x)[:, :, row, column], expected, rtol=1e-4, atol=1e-4)
    assert network(images(28)).shape == (2, 16, 2, 2)  # positions are interpolated


def test_published_names_and_sizes() -> None:
    with torch.device("meta"):
        network = DinoV2(DinoV2Config())
    assert sum(parameter.numel() for parameter in network.parameters()) == 22_056_576
    for name, shape in {
        "embeddings.position_embeddings": (1, 1370, 384),
        "embeddings.mask_token": (1, 384),
        "encoder.layer.11.attention.attention.query.weight": (384, 384),
        "encoder.layer.0.attention.output.dense.bias": (384,),
        "encoder.layer.3.mlp.fc1.weight": (1536, 384),
        "encoder.layer.3.layer_scale2.lambda1": (384,),
    }.items():
        assert tuple(network.state_dict()[name].shape) == shape
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "vit"}, "model_type"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn"),
        ({"num_attention_heads": 3}, "3 heads do not divide 16"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"hidden_size": 32}, "another shape"),
        ({"num_hidden_layers": 3}, "missing"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_vision_encoder(str(write_vision_encoder(tmp_path / "dino", **changes)))


def test_left_over_tensors_and_bad_names_are_refused(tmp_path: Path) -> None:
    directory = write_vision_encoder(tmp_path / "dino")
    weights = load_file(directory / "model.safetensors")
    save_file(weights | {"classifier.weight": torch.zeros(2)}, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected \(classifier.weight\)"):
        load_vision_encoder(str(directory))
    with pytest.raises(UsageError, match="neither a directory nor a hub id"):
        load_vision_encoder("dinov2")
