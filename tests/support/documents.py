"""Commands that the documentation shows."""

from __future__ import annotations

import os
import re

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def commands(document: str, kind: str, section: str = "") -> list[str]:
    """The shell blocks of a kind (` ```sh KIND `) below a heading, in order.

    Args:
        document: Path in the repository.
        kind: The word after `sh`.
        section: Text of the heading, to the next of its level; without it the whole document.
    """
    with open(f"{_ROOT}/{document}") as file:
        text = file.read()
    if section:
        heading = re.search(rf"^(#+) {re.escape(section)}$", text, re.MULTILINE)
        assert heading is not None, section
        text = text[heading.end() :]
        following = re.search(rf"^#{{1,{len(heading[1])}}} ", text, re.MULTILINE)
        text = text[: following.start()] if following else text
    return re.findall(rf"^```sh {kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
