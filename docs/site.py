"""How mkdocs sees this repository. A page of the site lies where its file does, so that a link that leads somewhere on
a forge leads there on the site, too; what is no page, such as code, is linked to on the forge.
"""

import posixpath
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT: Final = Path(__file__).parents[1]
_PAGES: Final = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "benchmarks/results/*.md")
_PICTURES: Final = ("docs/pictures/*.svg", "benchmarks/results/*.svg")
_LINK: Final = re.compile(r"\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_CODE: Final = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """In place of what is in `docs_dir`: all pages and pictures, by their paths in the repository."""
    ours = [each for each in files if each.src_dir != config.docs_dir]
    found = [path for pattern in (*_PAGES, *_PICTURES) for path in sorted(_ROOT.glob(pattern))]
    for path in found:
        name = path.relative_to(_ROOT).as_posix()
        ours.append(File.generated(config, name, abs_src_path=str(path)))
    return Files([*ours, File.generated(config, "benchmarks/results/index.md", content=_index())])


def _index() -> str:
    """The page of a folder that a forge lists by itself."""
    results = sorted((_ROOT / "benchmarks/results").glob("*.md"))
    titles = [(path.name, path.read_text().partition("\n")[0].lstrip("# ")) for path in results]
    return "# Results\n\n" + "\n".join(f"- [{title}]({name})" for name, title in titles) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to what the site has not, as links to the forge."""

    def whole(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), match["path"]))
        if files.get_file_from_path(path) is not None or not (_ROOT / path).exists():
            return match[0]
        if (_ROOT / path).is_dir() and files.get_file_from_path(f"{path}/index.md") is not None:
            return f"]({match['path'].rstrip('/')}/index.md)"
        kind = "tree" if (_ROOT / path).is_dir() else "blob"
        return f"]({config.repo_url.rstrip('/')}/{kind}/main/{path}{match['anchor'] or ''})"

    parts = _CODE.split(markdown)
    return "".join(part if number % 2 else _LINK.sub(whole, part) for number, part in enumerate(parts))
