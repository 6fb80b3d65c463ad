"""What the documentation points at exists: files, headings, commands and their options."""

import re
from functools import cache
from pathlib import Path

import pytest

from dcae_cli.app import COMMANDS, load_command

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"])

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"```.*?```|`[^`]+`|^ {4}[^\n]*$", re.DOTALL | re.MULTILINE)
_TYPED = re.compile(r"(?:^|[`|&;]) *dcae +(?:-[qv] +)?([a-z][a-z-]*)([^`|&;\n]*)", re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """Headings as links name them: lower case, dashes for blanks, no other punctuation."""
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    dead = []
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):  # the web's, which no test asks
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    return dead


@cache
def options_of(command: str) -> set[str]:
    """All options of a command, those of its own subcommands with them."""
    loaded = load_command(command)
    found = [loaded, *getattr(loaded, "commands", {}).values()]
    return {name for one in found for option in one.params for name in (*option.opts, *option.secondary_opts)}


def wrong_commands(text: str) -> list[str]:
    wrong = []
    for command, rest in _TYPED.findall("\n".join(_CODE.findall(text)).replace("\\\n", " ")):
        if command not in COMMANDS:
            wrong.append(f"dcae {command}")
            continue
        unquoted = re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", rest)
        given = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", unquoted))
        wrong += [f"dcae {command} {option}" for option in given - options_of(command) - {"--help", "-h"}]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert dead_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_can_be_typed(page: Path) -> None:
    assert wrong_commands(page.read_text(encoding="utf-8")) == []


def test_what_is_dead_or_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading: `this`\n[a](gone.md) [b](#a-heading-this) [c](#not) [d](https://example.org)\n")
    assert dead_links(page) == ["gone.md", "#not"]
    assert wrong_commands("```\ndcae sample --num 3 --sede 1\n```\n`dcae smaple`; dcae is prose") == [
        "dcae sample --sede",
        "dcae smaple",
    ]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name}" not in index]
    assert missing == ["index.md"]
