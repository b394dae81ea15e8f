"""What the site needs beside ``docs/``: pages of the repository, and links that hold there and on the site alike.

Pages link to each other as files of the repository, so that they can be read there too. Here such links become links to
the page that the site has of the file, or plain code where it has none.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]

# Files of the repository that are pages here.
PAGES = {
    "README.md": "index.md",
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/index.md",
}
_RESULTS = "benchmarks/results"
# A link or an image: [text](target#place)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def places() -> dict[str, str]:
    """{file of the repository: its place on the site} of what lies outside ``docs/``."""
    found = dict(PAGES)
    for path in sorted((ROOT / _RESULTS).rglob("*")):
        if path.suffix in (".md", ".png", ".json", ".csv"):
            found[path.relative_to(ROOT).as_posix()] = path.relative_to(ROOT).as_posix()
    for path in sorted((ROOT / "examples").glob("*.ipynb")):  # to be loaded; no page of the site
        found[path.relative_to(ROOT).as_posix()] = path.relative_to(ROOT).as_posix()
    return found


def on_config(config: Any) -> None:
    """Fill the navigation with the pages of models, of benchmarks, and of what stands nowhere in it yet."""
    named = str(config["nav"])
    for part in config["nav"]:
        if "Models" in part:
            part["Models"] += sorted(f"models/{path.name}" for path in _pages("docs/models") if path.stem != "index")
        if "Results" in part:
            pages = ["benchmarks/index.md", *(f"{_RESULTS}/{path.name}" for path in _pages(_RESULTS))]
            part["Results"].append({"Benchmarks": pages})
        if "Reference" in part:
            part["Reference"] += [path.name for path in _pages("docs") if f"'{path.name}'" not in named]


def _pages(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.md"))


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and figures that lie outside ``docs/``."""
    for source, place in places().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Turn links to files of the repository into links to pages of the site."""
    on_site = places()
    back = {place: source for source, place in on_site.items()}
    here = back.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        image, text, target, place = match.groups()
        if ":" in target:
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        uri = on_site.get(file, file.removeprefix("docs/") if file.startswith("docs/") else None)
        if uri is None and (ROOT / file).exists():
            return text if "`" in text else f"`{text}`"
        uri = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".") if uri else target
        return f"{image}[{text}]({uri}{place or ''})"

    return _LINK.sub(link, markdown)
