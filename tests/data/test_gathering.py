import importlib.util
import struct
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gather_photographs.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("gather_photographs", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def test_the_list_has_a_name_for_each_photograph_and_none_of_the_test_images(script) -> None:
    photographs = script.read_list()
    assert len(photographs) > 250
    names = Counter((photograph.label, photograph.name) for photograph in photographs)
    assert max(names.values()) == 1
    for photograph in photographs:
        assert Path(photograph.path).stem not in {"astronaut", "coffee", "chelsea", "rocket"}
        assert photograph.licence or not photograph.package.startswith("pypi:")


def test_the_sample_pack_is_part_of_the_list_and_each_image_has_a_licence(script) -> None:
    pack = SCRIPT.parents[1] / "examples" / "photographs"
    rows = [line.split("\t") for line in (pack / "LICENCES.tsv").read_text().splitlines()[1:]]
    listed = {(f"{one.label}/{one.name}.jpg", one.package, one.path) for one in script.read_list()}
    assert {tuple(row[:3]) for row in rows} <= listed
    assert all(author and licence for *_, author, licence in rows)
    assert {row[0] for row in rows} == {str(path.relative_to(pack)) for path in pack.rglob("*.jpg")}


def test_a_file_is_found_in_a_qt_resource_bundle(script) -> None:
    def node(name: int, flags: int, rest: bytes) -> bytes:
        return struct.pack(">IH", name, flags) + rest

    def name(text: str) -> bytes:
        return struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")

    names = name("animals") + name("cat.webp")
    tree = (
        node(0, 2, struct.pack(">II", 1, 1))  # the root: one child, which is node 1
        + node(0, 2, struct.pack(">II", 1, 2))
        + node(len(name("animals")), 0, struct.pack(">HHI", 0, 0, 0))
    )
    data = struct.pack(">I", 5) + b"bytes"
    start = 20
    offsets = (start, start + len(tree), start + len(tree) + len(data))
    bundle = struct.pack(">4sIIII", b"qres", 1, *offsets) + tree + data + names
    assert script.qt_resource(bundle, "animals/cat.webp") == b"bytes"


def test_the_last_matching_paragraph_of_a_copyright_file_counts(script, tmp_path) -> None:
    path = tmp_path / "usr/share/doc/images/copyright"
    path.parent.mkdir(parents=True)
    path.write_text(
        "Format: x\n\nFiles: *\nCopyright: 2001 Everyone\nLicense: GPL-2\n\n"
        "Files: src/animals/cat.jpg\n       src/animals/dog.jpg\nCopyright: 2002 Someone\n           2003 Other\n"
        "License: CC0\n more text\n"
    )
    cat = script.Photograph("animals", "images", "a.rcc!images/src/animals/cat.webp", "", "")
    assert script.author_and_licence(cat, tmp_path) == ("2002 Someone 2003 Other", "CC0")
    cow = cat._replace(path="a.rcc!images/src/animals/cow.webp")
    assert script.author_and_licence(cow, tmp_path) == ("2001 Everyone", "GPL-2")
