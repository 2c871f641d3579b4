"""The documentation is checked like code: what it shows runs, what it names exists, what exists is named."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from estimator.cli import COMMANDS, build_parser
from nas import cli as nas_cli
from nas.space import SearchSpace

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PARSERS = {"nas": nas_cli.build_parser(), "estimator": build_parser(list(COMMANDS))}
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def commands_in(text: str) -> Iterator[list[str]]:
    """Every line of a shell block that starts with one of our commands, up to a pipe."""
    for block in re.findall(r"```(?:sh|bash|console)?\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            command = line.removeprefix("$ ")
            if command.partition(" ")[0] in PARSERS and " " in command:
                yield list(itertools.takewhile(lambda word: word != "|", shlex.split(command, comments=True)))


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_shown_commands_are_understood(page: Path) -> None:
    """Each command line that a page shows parses: no option that is gone, no argument that is missing."""
    for words in commands_in(page.read_text(encoding="utf-8")):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                PARSERS[words[0]].parse_args(words[1:])
            except SystemExit:
                pytest.fail(f"{shlex.join(words)}: {said.getvalue()}")


@pytest.mark.parametrize("program", sorted(PARSERS))
def test_every_command_is_in_the_readme(program: str) -> None:
    """A reader of the README meets every command."""
    for name in subcommands(PARSERS[program]):
        assert re.search(rf"`?{program} {name}\b", README), f"{program} {name} is not in README.md"


def test_readme_python_runs() -> None:
    """The Python example does what it says, from first line to last."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    study = names["study"]
    assert study.hypervolume() > 0  # type: ignore[attr-defined]


def test_shown_space_is_valid(tmp_path: Path) -> None:
    """The TOML of the page on search spaces describes one, with as many architectures as it should."""
    page = (ROOT / "docs" / "howto" / "own-space.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "pocket.toml").write_text(block)
    space = SearchSpace.from_toml(tmp_path / "pocket.toml")
    shared = 3 * 2 * 3 * 2  # hidden sizes, heads, key-value heads, windows
    own_layers = sum(3**num_layers for num_layers in (2, 3, 4))
    pairs = sum(3 ** -(-num_layers // 2) for num_layers in (2, 3, 4))
    assert space.size() == shared * (own_layers + pairs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link and picture of a page exists."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_architecture_page_names_every_module() -> None:
    """A module that no reader can find in docs/architecture.md does not exist for them."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package in ("estimator", "nas", "api"):
        for path in (ROOT / package).glob("*.py"):
            assert path.name == "__init__.py" or f"`{path.name}`" in text, f"{package}/{path.name}"
