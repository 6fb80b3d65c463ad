"""The photographs that `dcae eval` measures when nothing is named."""

from dcae_core.data.sources import find_images
from dcae_core.pipelines.evaluation.inputs import sample_pack_directory


def test_the_sample_pack_is_found_and_has_classes() -> None:
    images = find_images([sample_pack_directory()])
    assert len(images) == 24
    assert len(images.classes) == 6
