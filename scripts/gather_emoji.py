"""Render the emoji of a freely licensed font into a class-per-folder image set, for training a small diffusion model.

The drawings are Noto Color Emoji (Debian package fonts-noto-color-emoji), the names and subgroups are Unicode's
(Debian package unicode-data, emoji-test.txt). A class is a subgroup as Unicode names it (`face-smiling`,
`animal-mammal`, `food-fruit`); all flags are one class, `flag`, of which every fourth is taken, so that flags are not a
seventh of everything. Skin-tone variants and components are left out.

    python scripts/gather_emoji.py runs/emoji

needs Debian 12 (`apt-get download`, `dpkg-deb`) and about 10 MB of downloads; it fills

    runs/emoji/train/CLASS/NAME.png        square images on white
    runs/emoji/held_out/CLASS/NAME.png     every tenth emoji of a class, never trained on
    runs/emoji/LICENCE.txt                 whose drawings these are and how they may be used

Emoji that mean the same from the other side (faces, animals, plants, food) get a mirrored copy, `NAME.mirrored.png`.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from gather_photographs import unpack
from PIL import Image, ImageDraw, ImageFont

FONT_PACKAGE, FONT = "fonts-noto-color-emoji", "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
NAMES_PACKAGE, NAMES = "unicode-data", "usr/share/unicode/emoji/emoji-test.txt"
STRIKE = 109  # the one size that the font's bitmaps have
MARGIN = 0.04  # of the side, left white around the drawing
SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
FLAG_GROUP, FLAG_CLASS, EVERY_FLAG = "Flags", "flag", 4
EVERY_HELD_OUT = 10
MIRRORED_GROUPS = {"Smileys & Emotion", "Animals & Nature", "Food & Drink"}


class Emoji(NamedTuple):
    """One emoji of Unicode's list: its characters, its name with dashes, its group and its class."""

    characters: str
    name: str
    group: str
    label: str


def read_names(text: str) -> list[Emoji]:
    """The fully qualified emoji of `emoji-test.txt` in its order, without skin tones and components."""
    found: list[Emoji] = []
    group = subgroup = ""
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif "; fully-qualified" in line and group != "Component":
            codes, _, comment = line.partition(";")
            characters = "".join(chr(int(code, 16)) for code in codes.split())
            name = comment.partition("#")[2].split(maxsplit=2)[2]  # after the emoji itself and its version
            if not SKIN_TONES & set(characters):
                label = FLAG_CLASS if group == FLAG_GROUP else file_name(subgroup)
                found.append(Emoji(characters, file_name(name), group, label))
    flags = [emoji for emoji in found if emoji.label == FLAG_CLASS]
    left_out = set(flags) - set(flags[::EVERY_FLAG])
    return [emoji for emoji in found if emoji not in left_out]


def file_name(name: str) -> str:
    """A name of letters, digits and dashes: "keycap: #" and "keycap: *" stay apart."""
    spelled = name.lower().replace("#", "number sign").replace("*", "asterisk").replace("’", "")
    return "-".join("".join(c if c.isalnum() else " " for c in spelled).split())


def split(emoji: list[Emoji]) -> dict[str, list[Emoji]]:
    """`train` and `held_out`: every tenth of a class, beginning with its fifth, is held out."""
    parts: dict[str, list[Emoji]] = {"train": [], "held_out": []}
    counts: defaultdict[str, int] = defaultdict(int)
    for one in emoji:
        place = counts[one.label] % EVERY_HELD_OUT
        parts["held_out" if place == EVERY_HELD_OUT // 2 - 1 else "train"].append(one)
        counts[one.label] += 1
    return parts


def render(characters: str, font: ImageFont.FreeTypeFont, side: int) -> Image.Image | None:
    """The drawing in the middle of a white square; None where the font has no single drawing for the characters."""
    width = font.getlength(characters)
    if width == 0 or width > 1.5 * font.getlength("\N{GRINNING FACE}"):
        return None
    canvas = Image.new("RGBA", (3 * STRIKE, 3 * STRIKE))
    ImageDraw.Draw(canvas).text((STRIKE, STRIKE), characters, font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        return None
    drawing = canvas.crop(box)
    scale = side * (1 - 2 * MARGIN) / max(drawing.size)
    size = (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale)))
    drawing = drawing.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(drawing, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square.convert("RGB")


def gather(out: Path, side: int) -> tuple[int, list[str]]:
    """Download, render and save; the number of emoji, and the names of those that the font does not have."""
    missing: list[str] = []
    count = 0
    with TemporaryDirectory() as directory:
        names = (unpack(NAMES_PACKAGE, Path(directory)) / NAMES).read_text(encoding="utf-8")
        unpacked = unpack(FONT_PACKAGE, Path(directory))
        font = ImageFont.truetype(str(unpacked / FONT), STRIKE, layout_engine=ImageFont.Layout.RAQM)
        for part, emoji in split(read_names(names)).items():
            for one in emoji:
                image = render(one.characters, font, side)
                if image is None:
                    missing.append(one.name)
                    continue
                count += 1
                folder = out / part / one.label
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{one.name}.png")
                if part == "train" and one.group in MIRRORED_GROUPS:
                    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"{one.name}.mirrored.png")
        copyright_file = unpacked / "usr/share/doc" / FONT_PACKAGE / "copyright"
        (out / "LICENCE.txt").write_text(copyright_file.read_text(encoding="utf-8"), encoding="utf-8")
    return count, missing


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory to fill")
    parser.add_argument("--side", type=int, default=256, metavar="PIXELS")
    options = parser.parse_args()
    count, missing = gather(options.out, options.side)
    print(f"{count} emoji in {options.out}; the font has no drawing for {len(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
