"""The documentation as a site: it builds without a warning, from nothing but this repository."""

import logging
import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]
LOADED = re.compile(
    r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*//'
)


class Told(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, told = tmp_path_factory.mktemp("site"), Told()
    logging.getLogger("mkdocs").addHandler(told)
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    finally:
        logging.getLogger("mkdocs").removeHandler(told)
    assert not told.records, "\n".join(told.records)
    return folder


def test_every_page_of_docs_has_its_place_there(site: Path) -> None:
    assert (site / "index.html").exists()
    assert all((site / f"docs/{path.stem}/index.html").exists() for path in (ROOT / "docs").glob("*.md"))


def test_links_to_code_lead_to_the_forge_and_links_to_results_stay(site: Path) -> None:
    page = (site / "docs/performance/index.html").read_text()
    assert 'href="../../benchmarks/results/fleet/"' in page
    assert 'src="../../benchmarks/results/fleet.svg"' in page
    assert 'href="../../benchmarks/results/"' in page
    assert 'href="https://github.com/headwater/headwater/blob/main/engine/headwater_engine/server/app.py"' in (
        (site / "docs/engine/index.html").read_text()
    )


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert pages
    assert [str(path) for path in pages if LOADED.search(path.read_text())] == []


def test_no_list_and_no_table_stayed_text(site: Path) -> None:
    """A forge reads both without an empty line before them, and the site does not."""
    for path in site.rglob("*.html"):
        text = re.sub(r"<pre>.*?</pre>", "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"<p>[^<]*\n(?:- |\* |\| |1\. )", text), path.relative_to(site)
