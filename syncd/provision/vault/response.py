"""Responses of a Vault or OpenBao server, and the files that are made of them. Pure.

The bytes are the same as upstream's (hashicorp/vault-csi-provider, `internal/provider`), so that
moving from the CSI driver to syncd changes no secret: a string verbatim, anything else as Go's
`encoding/json` writes it (`syncd.provision.vault.secret_json`).
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from syncd.core.errors import RefusedError, SyncdError
from syncd.core.payload import File, decode_value
from syncd.provision.vault.secret_json import SECRET_FIELDS, ShapeError, go_json, whole_secret

if TYPE_CHECKING:
    from syncd.provision.vault.objects import VaultObject

Tree = dict[str, Any]
_VOLATILE = frozenset(["request_id"])


class ResponseError(SyncdError):
    """The body is not a response of a Vault server; the message quotes nothing of it."""


class Response(msgspec.Struct, frozen=True):
    """A parsed body; numbers are kept as they are written."""

    tree: Tree

    def __repr__(self) -> str:
        return "Response()"

    @property
    def data(self) -> Tree | None:
        """The `data` of the response, or None."""
        data = self.tree.get("data")
        return data if isinstance(data, dict) else None

    @property
    def content(self) -> Tree | None:
        """What upstream takes for `data`: the body itself where no field of a response is set."""
        if self.tree.keys() & {*SECRET_FIELDS, "errors"}:
            return self.data
        return self.tree or None

    def text(self, *path: str) -> str:
        """The string at a path of keys; empty for anything else."""
        found = self._at(path)
        return found if isinstance(found, str) else ""

    def seconds(self, *path: str) -> float:
        """The finite number at a path of keys; 0 for anything else."""
        found = self._at(path)
        seconds = float(bytes(found)) if isinstance(found, msgspec.Raw) else 0.0
        return seconds if math.isfinite(seconds) else 0.0

    def flag(self, *path: str) -> bool:
        """Whether `true` is at a path of keys."""
        return self._at(path) is True

    def _at(self, path: tuple[str, ...]) -> object:
        found: Any = self.tree
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found


def parse_response(body: bytes) -> Response:
    """Parses a body.

    Raises:
        ResponseError: It is not a JSON object.
    """
    try:
        tree = json.loads(
            body.decode(),
            parse_int=_as_written,
            parse_float=_as_written,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError):
        raise ResponseError("is not JSON") from None
    if not isinstance(tree, dict):
        raise ResponseError("is not a JSON object")
    return Response(tree)


def is_gone(response: Response) -> bool:
    """Whether the body of a 404 shows that the version existed: it has KV v2's metadata."""
    metadata = response.data.get("metadata") if response.data else None
    return isinstance(metadata, dict) and "version" in metadata


def is_destroyed(response: Response) -> bool:
    """Whether the version that `is_gone` cannot be undeleted."""
    return response.flag("data", "metadata", "destroyed")


def to_file(response: Response, wanted: VaultObject) -> File:
    """Makes an object's file of the response to its request.

    Raises:
        RefusedError: The key is missing or the value cannot be decoded; names the object.
    """
    data = response.content
    if data is None:
        _refuse(wanted, "the response has no data", "check secretPath and method")
    try:
        if not wanted.key:
            return File(
                wanted.path, whole_secret({**response.tree, "data": data}), wanted.mode, _VOLATILE
            )
        inner = data.get("data")
        values = inner if isinstance(inner, dict) else data
        if wanted.key not in values:
            message = f"there is no key {wanted.key!r} at {wanted.secret_path}"
            _refuse(wanted, message, "write the key there, or correct secretKey")
        value = values[wanted.key]
        content = value.encode() if isinstance(value, str) else go_json(value)
    except ShapeError as error:
        _refuse(
            wanted,
            f"{error} of the response is not as Vault sends it",
            "check secretPath, or set secretKey",
        )
    except UnicodeEncodeError:
        _refuse(
            wanted, "the value is not valid Unicode", "store it in base64 and set encoding: base64"
        )
    except RecursionError:
        _refuse(wanted, "the value is nested too deeply", "store it with fewer levels")
    return File(wanted.path, _decoded(content, wanted), wanted.mode)


def _decoded(content: bytes, wanted: VaultObject) -> bytes:
    try:
        return decode_value(content, wanted.encoding)
    except ValueError:
        _refuse(wanted, f"the value is not {wanted.encoding}", "correct encoding or the value")


def _refuse(wanted: VaultObject, message: str, remedy: str) -> NoReturn:
    raise RefusedError(f"cannot read {wanted.path}: {message}", remedy) from None


def _as_written(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError
