"""How hostile files are made: good ones with some bytes, numbers, words or branches exchanged."""

import json
import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_NUMBERS = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1]
_FORMATS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")
AWKWARD_TEXT = (
    *("", "\x00", "\x1b[2J", "a\nb", "\u202e", "\ud800", "..", "../../x", "/etc/passwd", "x" * 300, "9" * 5000),
    *("nan", "1e999", "-1", "true", "null", "é", "%s%n", "{0.__class__}", "${HOME}", "CON", "http://x", "NaN"),
)
AWKWARD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.0, -0.5, 1e308, 1e-308, "", "x", [], {}, [[]], [{}]),
    *(float("inf"), float("-inf"), float("nan"), [0] * 50, ["a"] * 50, {"a": {"b": {"c": []}}}, [None], {"": ""}),
    *AWKWARD_TEXT,
)


@st.composite
def mutated(draw: st.DrawFn, corpus: Sequence[bytes], most: int = 6) -> bytes:
    """One of the corpus with up to `most` places changed."""
    content = bytearray(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(0, most))):
        where = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.integers(0, 6)):
            case 0:
                content[where : where + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                number = struct.pack("<Q", draw(st.sampled_from(_NUMBERS)))
                size = struct.calcsize(kind := draw(st.sampled_from(_FORMATS)))
                content[where : where + size] = number[:size] if kind[0] == "<" else number[:size][::-1]
            case 2:
                del content[where:]
            case 3:
                del content[where : where + draw(st.integers(1, 64))]
            case 4:
                content[where:where] = draw(st.binary(max_size=64))
            case 5:
                other = draw(st.sampled_from(corpus))
                start = draw(st.integers(0, max(len(other) - 1, 0)))
                content[where:where] = other[start : start + draw(st.integers(1, 512))]
            case 6:
                content[where:where] = content[where : where + draw(st.integers(1, 256))] * draw(st.integers(1, 20))
    return bytes(content)


@st.composite
def awkward_json(draw: st.DrawFn, documents: Sequence[Any], most: int = 4) -> bytes:
    """One of some JSON documents with up to `most` branches exchanged, dropped, added or grown."""
    document = json.loads(json.dumps(draw(st.sampled_from(documents))))
    for _ in range(draw(st.integers(0, most))):
        document = _change(draw, document)
    text = json.dumps(document, ensure_ascii=draw(st.booleans()))
    content = text.encode("utf-8", "surrogatepass")
    return content if draw(st.integers(0, 5)) else draw(mutated([content]))


def _change(draw: st.DrawFn, value: Any) -> Any:
    """Go down at random and put something awkward there."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        match draw(st.integers(0, 9)):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return value | {draw(st.sampled_from(AWKWARD_TEXT)): draw(st.sampled_from(AWKWARD_VALUES))}
            case _:
                return value | {key: _change(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        match draw(st.integers(0, 5)):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value * draw(st.integers(2, 40))
            case _:
                return [*value[:place], _change(draw, value[place]), *value[place + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and draw(st.booleans()):
        return draw(st.sampled_from([value + 1, value - 1, -value, value * 1000, value * 10**9, value / 2, str(value)]))
    return draw(st.sampled_from(AWKWARD_VALUES))


YAML_VALUES = st.one_of(
    st.sampled_from(
        (
            *("!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!binary é", "!!set {a}", "!!omap [a: 1]", "!x y"),
            *("*a", "&a [1]", "[", "{", "{a: 1", "'", '"\\ud800"', '"\\x"', "|\n  a", ">\n", "- - -", "? a", "%", "@"),
            *("1e-4", "-.inf", ".nan", "0x10", "0o7", "1_000", "12:30:45", "no", "~", "9" * 30, "9" * 5000, "[" * 300),
            "<<: {a: 1}",
        )
    ),
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(repr),
)


@st.composite
def awkward_yaml(draw: st.DrawFn, texts: Sequence[str], most: int = 4) -> bytes:
    """A recipe with some lines' values exchanged, lines moved, or bytes changed."""
    lines = draw(st.sampled_from(texts)).splitlines()
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[place].partition(":")
        match draw(st.integers(0, 4)):
            case 0:
                del lines[place]
            case 1:
                lines.insert(place, draw(st.sampled_from(lines or [""])))
            case 2:
                lines.insert(place, f"{draw(st.text(max_size=8))}: {draw(YAML_VALUES)}")
            case _:
                lines[place] = f"{key}{colon or ':'} {draw(YAML_VALUES)}"
        lines = lines or [""]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return content if draw(st.integers(0, 5)) else draw(mutated([content]))
