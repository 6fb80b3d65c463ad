"""The photographs that `dcae eval` measures when nothing is named."""

from dcae_core.data.sources import find_pictures
from dcae_core.pipelines.evaluation.inputs import sample_pack_directory


def test_the_sample_pack_is_found_and_has_classes() -> None:
    pictures = find_pictures([sample_pack_directory()])
    assert len(pictures) == 24
    assert len(pictures.classes) == 6
