"""Sphinx configuration: `make docs`. The source folder is the repository's root, so that links work here as on a repository's page.

The tables of contents are read off the pages' own lists of links (`add_contents`): a page is listed once, in Markdown.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

project = "polyhead"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/**/*.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
exclude_patterns = [".venv*", ".ns", ".git", "build", "client", "heads", "server", "tests", "protos", "deploy"]
html_theme = "furo"
html_title = "polyhead"
html_static_path = ["static"]
html_css_files = ["polyhead.css"]
html_extra_path = ["redirect"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
myst_heading_anchors = 4
autodoc_mock_imports = ["torch", "transformers"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
default_role = "code"

LISTED = re.compile(r"^- \[[^\]]+\]\(([^)#]+)\.md\)", re.MULTILINE)


def add_contents(app: Any, name: str, source: list[str]) -> None:
    """Give an index page the table of contents that its list of links is."""
    if name.endswith("/index"):
        folder = Path(name).parent
        entries = [resolved(folder / link) for link in LISTED.findall(source[0])]
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(f"/{entry}" for entry in entries) + "\n```\n"


def resolved(path: Path) -> str:
    """`docs/../SECURITY` is `SECURITY`."""
    return str((ROOT / path).resolve().relative_to(ROOT))


def as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text with code between backticks: what reStructuredText would read as markup is escaped."""
    text = "\n".join(lines)
    for title, section in (("Raises", "Raises:"), ("Options", "Keyword Args:")):
        text = re.sub(rf"^{title}$", section, text, flags=re.MULTILINE)
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    lines[:] = "`".join(parts).splitlines()


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
