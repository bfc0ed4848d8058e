"""A mount as the Secrets Store CSI Driver writes it, rotated at a known moment.

The generation is written beforehand; the clock starts with the rename of `..data`. That is what
syncd and every peer wait for, and how long a driver takes to write is no part of it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import Final

DATA: Final = "..data"


class Mount:
    """A directory of secrets, and the vault config that names them.

    Args:
        directory: Where to make both.
        count: How many secrets.
    """

    def __init__(self, directory: str, count: int) -> None:
        self.root = f"{directory}/mount"
        self.vault_config = f"{directory}/vault-config.json"
        self.names = [f"secret-{number:05}" for number in range(count)]
        self._values = dict.fromkeys(self.names, b"")
        self._generation = 0
        self._old: list[str] = []
        os.makedirs(self.root)
        self.rotate()
        for name in self.names:
            os.symlink(f"{DATA}/{name}", f"{self.root}/{name}")
        entries = {
            name: {
                "path": f"{self.root}/{name}",
                "scope": {"resource_type": "Client", "id": name},
            }
            for name in self.names
        }
        with open(self.vault_config, "w") as file:
            json.dump({"secret": entries}, file)

    @property
    def paths(self) -> list[str]:
        """The files as a vault config names them."""
        return [f"{self.root}/{name}" for name in self.names]

    def rotate(self, changed: int | None = None) -> float:
        """Publishes a generation.

        Args:
            changed: How many secrets have a new value; all by default.

        Returns:
            `time.perf_counter` as the swap began, seconds.
        """
        for old in self._old:
            shutil.rmtree(old)
        self._generation += 1
        directory = f"..{self._generation:08}"
        os.mkdir(f"{self.root}/{directory}")
        for name in self.names[:changed]:
            self._values[name] = f"value {self._generation} of {name}, and thirty-two".encode()
        for name, value in self._values.items():
            descriptor = os.open(f"{self.root}/{directory}/{name}", os.O_WRONLY | os.O_CREAT, 0o640)
            os.write(descriptor, value)
            os.close(descriptor)
        os.symlink(directory, f"{self.root}/..data_tmp")
        if os.path.exists(f"{self.root}/{DATA}"):
            self._old = [f"{self.root}/{os.readlink(f'{self.root}/{DATA}')}"]
        start = time.perf_counter()
        os.rename(f"{self.root}/..data_tmp", f"{self.root}/{DATA}")
        return start
