"""A stand-in for Azure's command line: what the guide types, done to the fake.

It knows the options of the commands that the guide uses (learn.microsoft.com/cli/azure) and refuses
others. `FAKE` in the environment is the address of the fake's control.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request

COMMANDS = {
    "keyvault create": {"name", "resource-group", "enable-rbac-authorization"},
    "keyvault secret set": {"vault-name", "name", "value"},
    "keyvault show": {"name", "query", "output"},
    "vm identity assign": {"resource-group", "name"},
    "vm show": {"resource-group", "name", "query", "output"},
    "role assignment create": {"role", "assignee-object-id", "assignee-principal-type", "scope"},
}


def main(arguments: list[str]) -> None:
    split = next(i for i, text in enumerate(arguments) if text.startswith("--"))
    command, rest = " ".join(arguments[:split]), arguments[split:]
    names = [name.removeprefix("--") for name in rest[::2]]
    options = dict(zip(names, rest[1::2], strict=True))
    if set(options) != COMMANDS.get(command):
        sys.exit(f"az: {command} does not take {sorted(options)}")
    if command.endswith("show"):
        sys.stdout.write(f"the-{options['query'].rpartition('.')[2]}-of-{options['name']}\n")
        return
    body = json.dumps({"command": command, **options}).encode()
    urllib.request.urlopen(os.environ["FAKE"], body).read()


if __name__ == "__main__":
    main(sys.argv[1:])
