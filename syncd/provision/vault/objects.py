"""A manifest of `provider: vault` or `openbao`: its parameters and objects, decoded. Pure.

Sources: hashicorp/vault-csi-provider 1.7 and openbao/openbao-csi-provider, `internal/config`. Where
syncd is stricter: unknown keys are warned about, and an invalid permission or encoding, which
upstream notices at the first mount, is an error at the start. As upstream, nothing is trimmed:
white space within quotes is part of a name.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec

from syncd.config.validation import check_base_url
from syncd.core.decode import Text, decode
from syncd.core.payload import DEFAULT_MODE, ENCODINGS
from syncd.core.tree import Node, Scalar
from syncd.provision.manifest import (
    Path,
    check_paths,
    check_permission,
    go_bool,
    number_permission,
    octal_permission,
    parse_block,
    without_unknown,
)
from syncd.provision.yaml_v3 import NotJsonError, json_value

if TYPE_CHECKING:
    from syncd.core.findings import Finding
    from syncd.provision.manifest import Manifest, Report

DEFAULT_ADDRESS = "https://127.0.0.1:8200"
"""Upstream's default (`api.DefaultConfig`)."""
DEFAULT_LOGIN_MOUNT = "kubernetes"

READS = ("GET", "LIST", "HEAD")
"""Methods that change nothing, so that their order does not matter."""
_MINTING = re.compile(
    r"(?:.*/)?(?:identity/oidc/token/[^/]+|totp/code/[^/]+|gcp/(?:token|key)/[^/]+"
    r"|gcp/(?:roleset|static-account|impersonated-account)/[^/]+/token)"
)
"""Reads that answer with something new each time and without a lease, at the usual mounts."""
_SNAKE = {"objectName": "object_name", "secretPath": "secret_path", "secretKey": "secret_key"}

_PREFIXED = (
    "Address",
    "Namespace",
    "CACertPath",
    "CADirectory",
    "TLSServerName",
    "TLSClientCertPath",
    "TLSClientKeyPath",
    "SkipTLSVerify",
    "KubernetesMountPath",
    "AuthMountPath",
)
_PLAIN = ("roleName", "audience", "objects")
_PREFIXES = {"vault": ("vault",), "openbao": ("vault", "openbao", "bao")}
_PARAMETERS: Path = ("spec", "parameters")
_OBJECTS: Path = (*_PARAMETERS, "objects")


class VaultObject(msgspec.Struct, frozen=True):
    """One file and the response that it comes from.

    Attributes:
        path: The file, relative to the target (`objectName`).
        secret_path: What to read below `/v1/`, without a query.
        query: The query, as written after `?`; or empty.
        key: Which value of the response; empty for the whole of it (`secretKey`).
        method: HTTP verb, in capitals.
        arguments: `secretArgs` as a JSON object, or None; can be secret.
        mode: Permission bits of the file.
        encoding: How the value is decoded: one of `ENCODINGS`.
    """

    path: str
    secret_path: str
    query: str
    key: str
    method: str
    arguments: str | None
    mode: int
    encoding: str

    def __repr__(self) -> str:
        return f"VaultObject({self.path!r}, {self.method} {self.secret_path!r})"

    @property
    def request(self) -> tuple[str, str, str, str | None]:
        """Identifies the request: objects with the same one share its response."""
        return (self.method, self.secret_path, self.query, self.arguments)


class VaultClass(msgspec.Struct, frozen=True):
    """A SecretProviderClass of Vault or OpenBao.

    Attributes:
        address: The server's URL, without a slash at its end.
        namespace: The namespace, or empty.
        role: `roleName`, or empty.
        login_mount: Where the auth method is mounted, or None if not set.
        ca_file: PEM file of the CA to trust, or None.
        ca_directory: Directory of PEM files to trust, or None.
        server_name: Name expected in the server's certificate instead of the address's, or None.
        client_cert: PEM file of the client certificate, or None.
        client_key: PEM file of its key, or None.
        skip_verify: Whether any certificate of the server is accepted.
        objects: The files to write, in order.
        address_key: How the manifest spells the parameter of `address`.
    """

    address: str
    namespace: str
    role: str
    login_mount: str | None
    ca_file: str | None
    ca_directory: str | None
    server_name: str | None
    client_cert: str | None
    client_key: str | None
    skip_verify: bool
    objects: tuple[VaultObject, ...]
    address_key: str

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that are written, relative to the target."""
        return tuple(item.path for item in self.objects)


class _Object(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    object_name: Text = Text()
    secret_path: Text = Text()
    secret_key: Text = Text()
    method: Text = Text()
    encoding: Text = Text()
    # taken out before decoding, which would lose quotes and base
    secret_args: Any = None
    file_permission: Any = None


class _Parameters:
    """The parameters by their names without `vault`, `openbao` or `bao`."""

    def __init__(self, manifest: Manifest, report: Report) -> None:
        known = {name: name for name in _PLAIN}
        for prefix in _PREFIXES[manifest.provider]:
            known |= {prefix + name: name for name in _PREFIXED}
        report.unknown(_PARAMETERS, manifest.parameters, known)
        self._values: dict[str, str] = {}
        self._keys = {name: key for key, name in reversed(known.items())}
        for key, value in manifest.parameters.items():
            name = known.get(key)
            if name is None:
                continue
            if self._values.setdefault(name, value) != value:
                message = f"contradicts {self._keys[name]}"
                report.error((*_PARAMETERS, key), message, "keep one of them")
            else:
                self._keys[name] = key

    def get(self, name: str) -> str:
        return self._values.get(name, "")

    def key(self, name: str) -> str:
        """How the manifest spells a name."""
        return self._keys[name]

    def path(self, name: str) -> Path:
        """Where it is written, or where it is missing."""
        return (*_PARAMETERS, self._keys[name])


def decode_vault(manifest: Manifest) -> tuple[VaultClass | None, list[Finding]]:
    """Decodes the parameters of a manifest for Vault or OpenBao.

    Returns:
        The class, or None where there is an error, and all findings.
    """
    report = manifest.report()
    parameters = _Parameters(manifest, report)
    skip_verify = go_bool(parameters.get("SkipTLSVerify"), parameters.path("SkipTLSVerify"), report)
    if skip_verify:
        message = "TLS certificates are not verified: the secrets can be read on the way"
        hint = f"set {parameters.key('CACertPath')} instead"
        report.warn(parameters.path("SkipTLSVerify"), message, hint, "manifest-insecure")
    address = _address(parameters, report)
    namespace = parameters.get("Namespace").strip("/")
    if not (namespace.isascii() and namespace.isprintable()):
        message = "holds a character that is not printable ASCII"
        report.error(parameters.path("Namespace"), message, "write a namespace such as team/app")
    _check_pairs(parameters, report)
    if parameters.get("audience"):
        hint = "remove it, or keep it for the cluster"
        message = "does nothing here: the token in jwt_file has its own audience"
        report.warn(parameters.path("audience"), message, hint)
    objects = _objects(manifest.parameters.get("objects"), report)
    if report.errors:
        return None, report.findings
    mount = parameters.get("AuthMountPath") or parameters.get("KubernetesMountPath")
    vault_class = VaultClass(
        address=address,
        namespace=namespace,
        role=parameters.get("roleName"),
        login_mount=mount.strip("/") if mount else None,
        ca_file=parameters.get("CACertPath") or None,
        ca_directory=parameters.get("CADirectory") or None,
        server_name=parameters.get("TLSServerName") or None,
        client_cert=parameters.get("TLSClientCertPath") or None,
        client_key=parameters.get("TLSClientKeyPath") or None,
        skip_verify=skip_verify,
        objects=objects,
        address_key=parameters.key("Address"),
    )
    return vault_class, report.findings


def _check_pairs(parameters: _Parameters, report: Report) -> None:
    pair = ("TLSClientCertPath", "TLSClientKeyPath")
    for name, other in (pair, pair[::-1]):
        if parameters.get(other) and not parameters.get(name):
            hint = f"set it beside {parameters.key(other)}: certificate and key are used together"
            report.error(parameters.path(name), "is missing", hint)
    if parameters.get("KubernetesMountPath") and parameters.get("AuthMountPath"):
        message = f"is set beside {parameters.key('AuthMountPath')}"
        report.error(parameters.path("KubernetesMountPath"), message, "keep one of them")


def _address(parameters: _Parameters, report: Report) -> str:
    address = parameters.get("Address") or DEFAULT_ADDRESS
    if check_base_url(address, ()) is not None:
        hint = "write https://host:8200"
        report.error(parameters.path("Address"), "is not the URL of a server", hint)
    return address.rstrip("/")


def _objects(text: str | None, report: Report) -> tuple[VaultObject, ...]:
    hint = "write objects: | and below it a list of - objectName: …"
    tree = parse_block(text, _OBJECTS, hint, report)
    if tree is None:
        return ()
    if not isinstance(tree, list) or not tree:
        report.error(_OBJECTS, "contains no objects", hint)
        return ()
    objects = [_object(item, (*_OBJECTS, index), report) for index, item in enumerate(tree)]
    named = [
        ((*_OBJECTS, index, "objectName"), item.path) for index, item in enumerate(objects) if item
    ]
    check_paths(named, report)
    return tuple(item for item in objects if item)


def _object(tree: Any, path: Path, report: Report) -> VaultObject | None:  # noqa: ANN401 - a tree
    tree = without_unknown(tree, path, _Object, report)
    mode, arguments = DEFAULT_MODE, None
    if isinstance(tree, dict) and "filePermission" in tree:
        mode = _mode(tree.pop("filePermission"), (*path, "filePermission"), report)
    if isinstance(tree, dict) and "secretArgs" in tree:
        arguments = _arguments(tree.pop("secretArgs"), (*path, "secretArgs"), report)
    fields, problems = decode(tree, _Object)
    report.problems(path, problems)
    if fields is None:
        return None
    if not fields.secret_path.strip("/"):
        report.error((*path, "secretPath"), "is missing", "add secretPath: secret/data/app")
    encoding = fields.encoding.lower() or "utf-8"
    if encoding not in ENCODINGS:
        report.error((*path, "encoding"), "is not known", "use one of " + ", ".join(ENCODINGS))
    elif encoding != "utf-8" and not fields.secret_key:
        message = "does nothing without secretKey: the whole response is written as JSON"
        report.warn((*path, "encoding"), message, "add secretKey or remove encoding")
    method = fields.method.upper() or "GET"
    if not (method.isascii() and method.isalpha()):
        report.error((*path, "method"), "is not an HTTP method", "use GET, POST or PUT")
    where, _, query = fields.secret_path.partition("?")
    _check_first_pass(fields, method, arguments, path, report)
    return VaultObject(
        path=str(fields.object_name),
        secret_path=where.lstrip("/").removeprefix("v1/").lstrip("/"),
        query=query,
        key=str(fields.secret_key),
        method=method,
        arguments=arguments,
        mode=mode,
        encoding=encoding,
    )


def _check_first_pass(
    fields: _Object, method: str, arguments: str | None, path: Path, report: Report
) -> None:
    """Warns of what is valid and does not do what was meant."""
    for key in ("objectName", "secretPath", "secretKey"):
        report.placeholders((*path, key), getattr(fields, _SNAKE[key]))
    if arguments is not None:
        report.placeholders((*path, "secretArgs"), arguments)
        if method in READS and arguments != "{}":
            message = f"does nothing with {method}: only a write has a body"
            report.warn((*path, "secretArgs"), message, "add method: PUT, or remove it")
    where = fields.secret_path.partition("?")[0].strip("/").removeprefix("v1/")
    if method in READS and _MINTING.fullmatch(where):
        message = "makes a new credential in every pass, without a lease to reuse it by"
        hint = "set an interval that is as long as the credential should last"
        report.warn((*path, "secretPath"), message, hint, "manifest-mints")


def _arguments(tree: object, path: Path, report: Report) -> str | None:
    """The JSON of `secretArgs`, scalars as yaml.v3 reads them."""
    if not isinstance(tree, Node):
        report.error(path, "must be a mapping", "write key: value")
        return None
    _check_duplicates(tree, path, report)
    try:
        return json.dumps(json_value(tree), sort_keys=True)
    except NotJsonError:
        report.error(path, "holds infinity or not a number", "write a number, or put it in quotes")
        return None


def _check_duplicates(tree: object, path: Path, report: Report) -> None:
    if isinstance(tree, Node):
        report.duplicates(path, tree)
    if isinstance(tree, Node | list):
        items = tree.items() if isinstance(tree, Node) else enumerate(tree)
        for key, item in items:
            _check_duplicates(item, (*path, key), report)


def _mode(value: object, path: Path, report: Report) -> int:
    mode = number_permission(value) if isinstance(value, Scalar) else None
    if not isinstance(value, Scalar) or mode is None:
        report.error(path, "is not a permission up to 0777", "write it in octal, such as 0600")
        return DEFAULT_MODE
    if value.plain and value.isdecimal() and not value.startswith("0"):
        message = f"is a decimal number, {mode:04o} in octal"
        octal = octal_permission(value)
        hint = "write it in octal" if octal is None else f"write {octal:04o} if you mean octal"
        report.warn(path, message, hint, "manifest-permission")
    check_permission(mode, path, report)
    return mode or DEFAULT_MODE
