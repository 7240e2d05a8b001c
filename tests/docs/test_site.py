"""The site builds, and a warning is an error."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = [
    "index", "getting_started", "candidates", "population", "discovery", "statistics", "add_task",
    "api/objectives", "notebooks/discopop_anatomy",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_without_a_warning(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("sphinx_book_theme", reason="the site needs the extra docs")
    site, tree = str(tmp_path / "site"), str(tmp_path / "tree")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-b", "html", "-d", tree, "docs", site]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr[-6000:]
    for page in PAGES:
        assert (tmp_path / "site" / f"{page}.html").stat().st_size > 5000
    # The reference has what the docstrings say, and a notebook the pictures it was committed with.
    reference = (tmp_path / "site/api/objectives.html").read_text(encoding="utf-8")
    assert "objectives.LogProbs" in reference and "summed over completion tokens" in reference
    anatomy = (tmp_path / "site/notebooks/discopop_anatomy.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<img[^>]+_images/", anatomy)) >= 3


def test_every_page_is_in_the_table_of_contents(repository: Path) -> None:
    docs = repository / "docs"
    contents = "\n".join(page.read_text(encoding="utf-8") for page in docs.rglob("*.md"))
    listed = {entry.strip() for toctree in re.findall(r"```\{toctree\}\n(.*?)```", contents, re.DOTALL)
              for entry in toctree.splitlines() if not entry.startswith(":")}  # fmt: skip
    for page in docs.glob("*.md"):
        assert page.stem not in ("search", "genindex"), "Sphinx writes a page of that name itself"
        known = page.stem in listed or page.stem == "index"
        assert known or any(page.match(f"{entry}.md") for entry in listed if "*" in entry), page.name
    for page in (repository / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{page.stem}" in listed
