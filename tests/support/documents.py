"""Commands that the documentation shows."""

from __future__ import annotations

import os
import re

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def commands(document: str, kind: str) -> list[str]:
    """The shell blocks of a kind (` ```sh KIND `), in order.

    Args:
        document: Path in the repository.
        kind: The word after `sh`, which says where they are run.
    """
    with open(f"{_ROOT}/{document}") as file:
        return re.findall(rf"^```sh {kind}\n(.*?)^```", file.read(), re.DOTALL | re.MULTILINE)
