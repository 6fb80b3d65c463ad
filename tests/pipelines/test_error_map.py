import torch
from PIL import Image

from dcae_core.pipelines.comparison import ERROR_AT_WHITE, ERROR_COLOURS, colour_errors, error_levels


def test_levels_are_the_mean_difference_of_the_channels() -> None:
    a = torch.tensor([10, 20, 250], dtype=torch.uint8)[:, None, None].expand(3, 2, 5)
    b = a.clone()
    b[:, 1, 3] = torch.tensor([40, 20, 220])
    levels = error_levels(a, b)
    assert levels.size == (5, 2)
    assert [levels.getpixel((x, y)) for y in range(2) for x in range(5)] == [0] * 8 + [20, 0]


def test_every_level_has_its_colour() -> None:
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    colours = [colour_errors(ramp).getpixel((level, 0)) for level in range(256)]
    step = ERROR_AT_WHITE // (len(ERROR_COLOURS) - 1)
    assert tuple(colours[::step][: len(ERROR_COLOURS)]) == ERROR_COLOURS
    assert set(colours[ERROR_AT_WHITE:]) == {ERROR_COLOURS[-1]}
    assert ramp.mode == "L"
    brightness = [0.3 * red + 0.59 * green + 0.11 * blue for red, green, blue in colours[: ERROR_AT_WHITE + 1]]
    assert brightness == sorted(set(brightness))
