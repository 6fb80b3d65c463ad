"""The list of emoji that `scripts/gather_emoji.py` renders: names, classes, what is left out, what is held out."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

TEXT = """\
# group: Smileys & Emotion

# subgroup: face-smiling
1F600                                                  ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F                                              ; fully-qualified     # ☺️ E0.6 smiling face
263A                                                   ; unqualified         # ☺ E0.6 smiling face

# group: People & Body

# subgroup: hand-fingers-open
1F44B                                                  ; fully-qualified     # 👋 E0.6 waving hand
1F44B 1F3FB                                            ; fully-qualified     # 👋🏻 E1.0 waving hand: light skin tone

# group: Component

# subgroup: hair-style
1F9B0                                                  ; component           # 🦰 E11.0 red hair

# group: Travel & Places

# subgroup: sky & weather
2600 FE0F                                              ; fully-qualified     # ☀️ E0.6 sun

# group: Symbols

# subgroup: keycap
0023 FE0F 20E3                                         ; fully-qualified     # #️⃣ E0.6 keycap: #
002A FE0F 20E3                                         ; fully-qualified     # *️⃣ E2.0 keycap: *

# group: Flags

# subgroup: country-flag
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    specification = importlib.util.spec_from_file_location("gather_emoji", SCRIPTS / "gather_emoji.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gather_emoji", module)
    specification.loader.exec_module(module)
    return module


def test_names_classes_and_what_is_left_out(script: ModuleType) -> None:
    flag = "{:X} {:X} ; fully-qualified # 🏳 E2.0 flag: Country {}\n"
    text = TEXT + "".join(flag.format(0x1F1E6, 0x1F1E6 + i, i) for i in range(9))
    emoji = script.read_names(text)
    assert [(one.name, one.label) for one in emoji[:6]] == [
        ("grinning-face", "face-smiling"),
        ("smiling-face", "face-smiling"),
        ("waving-hand", "hand-fingers-open"),
        ("sun", "sky-weather"),
        ("keycap-number-sign", "keycap"),
        ("keycap-asterisk", "keycap"),
    ]
    assert emoji[1].characters == "\u263a\ufe0f"
    assert [one.name for one in emoji if one.label == "flag"] == ["flag-country-0", "flag-country-4", "flag-country-8"]


def test_a_tenth_of_each_class_is_held_out_and_no_class_is_empty(script: ModuleType) -> None:
    sizes = {"a": 1, "b": 4, "c": 5, "d": 14, "e": 15, "f": 100}
    emoji = [script.Emoji("x", f"{label}-{i}", "G", label) for label, size in sizes.items() for i in range(size)]
    parts = script.split(emoji)
    assert Counter(one.label for one in parts["held_out"]) == {"c": 1, "d": 1, "e": 2, "f": 10}
    assert Counter(one.label for one in parts["train"]).keys() == sizes.keys()
    assert len(parts["train"]) + len(parts["held_out"]) == len(emoji)
