"""Hostile files, written as their makers would: by the bytes, without the libraries that would refuse to."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

from PIL import Image


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes | None = None) -> bytes:
    """A PNG of black pixels, whose size on the disk does not depend on its sides."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    compressor = zlib.compressobj(9)
    data = io.BytesIO()
    if rows is None:
        left = height * (1 + (width * bits + 7) // 8)
        block = bytes(1 << 20)
        while left > 0:
            data.write(compressor.compress(block[:left]))
            left -= len(block)
    else:
        data.write(compressor.compress(rows))
    data.write(compressor.flush())
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", data.getvalue()), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def image_bytes(kind: str = "PNG", size: tuple[int, int] = (24, 16), mode: str = "RGB", **options: object) -> bytes:
    """A small, good image."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def large_webp(width: int, height: int) -> bytes:
    """A lossless WebP of one colour: a small file of many pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "gray").save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def tar_header(name: str, size: int | bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One block, with whatever size is asked for: a number, or the field's 12 bytes."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    """Filled up to whole blocks of a tar."""
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)


def tar(members: dict[str, bytes]) -> bytes:
    """A good tar."""
    return b"".join(tar_header(name, len(content)) + padded(content) for name, content in members.items()) + bytes(1024)


def pax_record(key: str, value: str) -> bytes:
    """One line of a pax header: its own length, counted with itself, comes first."""
    rest = f" {key}={value}\n".encode("utf-8", "surrogateescape")
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def pax_member(name: str, content: bytes, **keys: str) -> bytes:
    """A member that a pax header describes anew."""
    described = b"".join(pax_record(key, value) for key, value in keys.items())
    return (
        tar_header("pax", len(described), tarfile.XHDTYPE)
        + padded(described)
        + tar_header(name, len(content))
        + padded(content)
    )


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
