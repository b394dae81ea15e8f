"""What the YAML files of parameters and recipes say of themselves in their comments.

A key has a line ``name: default  # (type, range) meaning``; sections have a heading of their own, ``# Network``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recbole_diffurec.config import layers

__all__ = ["Parameter", "Section", "experiments", "read"]


@dataclass
class Parameter:
    """One key of a YAML file with what its comment says."""

    name: str
    default: str
    kind: str
    meaning: str


@dataclass
class Section:
    """The keys below one heading of a YAML file."""

    title: str
    parameters: list[Parameter]


def read(path: Path) -> tuple[str, list[Section]]:
    """What a YAML file says of itself in its first lines, and its keys with their comments, by section."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = []
    while lines and lines[0].startswith("#"):
        head.append(lines.pop(0).lstrip("# "))
    sections = [Section("", [])]
    for line in lines:
        title = re.fullmatch(r"# ([^:]+)(: .*)?", line)
        key = re.match(r"(\w+):\s*(.*?)\s+# (\(.*)", line)
        nested = re.match(r"  (\S.*?)\s+#\s+(.*)", line)
        if title:
            sections.append(Section(title[1], []))
        elif key and key[1] != "base":
            sections[-1].parameters.append(Parameter(key[1], key[2], *_type_and_meaning(key[3])))
        elif nested and sections[-1].parameters:
            sections[-1].parameters[-1].meaning += f"; `{nested[1]}`: {nested[2]}"
    return " ".join(head), [section for section in sections if section.parameters]


def _type_and_meaning(comment: str) -> tuple[str, str]:
    """``(type, range) meaning`` in two; an interval's brackets need not be a pair."""
    depth = 0
    for place, character in enumerate(comment):
        depth += (character in "([") - (character in ")]")
        if depth == 0:
            return comment[1:place], comment[place + 1 :].strip()
    raise ValueError(f"no type in parentheses: {comment}")


def experiments() -> Iterator[tuple[str, str]]:
    """The names of ``--experiment``, and the first sentence of each."""
    folder = layers.properties_dir() / "experiment"
    for path in sorted(folder.rglob("*.yaml")):
        said = read(path)[0].partition(". ")[0].rstrip(".:")
        yield path.relative_to(folder).with_suffix("").as_posix(), said
