"""CLIP's vision network beside transformers where that is installed, and against what must hold of it anyway."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcae_core.checkpoints.vision_encoders import load_clip_vision
from dcae_core.errors import CheckpointError
from dcae_core.models.clip_vision import ClipVision, ClipVisionConfig
from tests.small import randomise
from tests.vision_encoders import SMALL_CLIP, write_clip

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def images() -> torch.Tensor:
    return torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def test_embeddings_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = write_clip(tmp_path / "clip")
    peer = transformers.CLIPVisionModelWithProjection.from_pretrained(directory).eval()
    x = images()
    with torch.no_grad():
        theirs = peer((x - MEAN) / STD).image_embeds
        ours = load_clip_vision(str(directory))(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_without_blocks_an_embedding_is_the_normed_class_token() -> None:
    network = ClipVision(ClipVisionConfig(**SMALL_CLIP))
    randomise(network)
    for block in network.vision_model.encoder["layers"].children():
        for last in (block.self_attn.out_proj, block.mlp.fc2):
            last.weight.zero_()
            last.bias.zero_()
    seen = network.vision_model
    token = seen.embeddings.class_embedding + seen.embeddings.position_embedding.weight[0]
    for norm in (seen.pre_layrnorm, seen.post_layernorm):
        token = torch.nn.functional.layer_norm(token, (16,), norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(network(images())[0], network.visual_projection.weight @ token, rtol=1e-4, atol=1e-4)


def test_published_names_and_sizes() -> None:
    with torch.device("meta"):
        network = ClipVision(ClipVisionConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 304_293_888
    for name, shape in {
        "vision_model.embeddings.class_embedding": (1024,),
        "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (577, 1024),
        "vision_model.pre_layrnorm.weight": (1024,),
        "vision_model.encoder.layers.23.self_attn.out_proj.bias": (1024,),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (4096, 1024),
        "visual_projection.weight": (768, 1024),
    }.items():
        assert tuple(network.state_dict()[name].shape) == shape
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_pickled_tensors_with_positions_beside_them_are_read(tmp_path: Path) -> None:
    directory = write_clip(tmp_path / "clip")
    expected = load_clip_vision(str(directory))(images())
    state = load_file(directory / "model.safetensors")
    state["vision_model.embeddings.position_ids"] = torch.arange(17)
    state["text_model.final_layer_norm.bias"] = torch.ones(2)
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin")
    assert torch.equal(load_clip_vision(str(directory))(images()), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_attention_heads": 3}, "3 heads do not divide 16"),
        ({"image_size": "large"}, "image_size"),
        ({"num_hidden_layers": 3}, "missing"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_clip_vision(str(write_clip(tmp_path / "clip", **changes)))


def test_left_over_tensors_are_refused(tmp_path: Path) -> None:
    directory = write_clip(tmp_path / "clip")
    weights = directory / "model.safetensors"
    save_file(load_file(weights) | {"classifier.weight": torch.zeros(2)}, weights)
    with pytest.raises(CheckpointError, match=r"unexpected \(classifier.weight\)"):
        load_clip_vision(str(directory))
