"""The pages say what is there: links lead somewhere, and the README has every command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.cli import MODULES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    dead = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not dead


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs" / "decisions").glob("0*.md")}
    assert pages == set(LINK.findall(index))


def test_decisions_are_numbered_from_one_on() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    titles = [page.read_text().split(". ")[0] for page in pages]
    assert titles == [f"# {number}" for number in range(1, len(pages) + 1)]
    assert [int(page.name[:4]) for page in pages] == [*range(1, len(pages) + 1)]


def test_the_readme_leads_to_every_page() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text()))
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in linked]
    assert not missing
    assert "docs/decisions/README.md" in linked


def test_the_readme_has_every_command() -> None:
    _, _, after = (ROOT / "README.md").read_text().partition("## The command line")
    table, _, _ = after.partition("\n## ")
    missing = [command for command in MODULES if not re.search(rf"`(quorumfs )?{command}\b", table)]
    assert not missing
