"""The links of a tree of documents, and those that lead nowhere."""

from __future__ import annotations

import os
import re
from typing import Final

_LINK: Final = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_HEADING: Final = re.compile(r"(?m)^#+ (.*)$")


def broken_links(root: str) -> list[str]:
    """Each link of a Markdown file below `root` to a file or a heading that is not there."""
    found = []
    for directory, _, names in os.walk(root):
        for name in sorted(names):
            if name.endswith(".md"):
                found += _broken(root, os.path.join(directory, name))
    return found


def _broken(root: str, path: str) -> list[str]:
    with open(path) as file:
        text = _FENCE.sub("", file.read())
    found = []
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        place = os.path.normpath(os.path.join(os.path.dirname(path), target)) if target else path
        inside = os.path.commonpath([root, place]) == root
        if not inside or not os.path.exists(place) or (anchor and anchor not in _anchors(place)):
            found.append(f"{os.path.relpath(path, root)}: {link}")
    return found


def _anchors(path: str) -> set[str]:
    """The anchors of headings, as GitHub makes them."""
    with open(path) as file:
        headings = _HEADING.findall(_FENCE.sub("", file.read()))
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}
