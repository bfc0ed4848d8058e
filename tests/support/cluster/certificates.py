"""The cluster's certificates, from one CA: API server, kubelet, administrator, vault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

ADDRESS: Final = "10.88.0.1"
_NAMES: Final = {
    "apiserver": ("kubernetes.default.svc", "localhost", "127.0.0.1", "10.96.0.1", ADDRESS),
    "kubelet": ("node1", ADDRESS),
    "vault": ("vault.vault", "localhost", "127.0.0.1", ADDRESS),
    "admin": ("admin",),
    "node": ("node1",),
}
_SUBJECTS: Final = {
    "admin": ("system:masters", "admin"),
    "node": ("system:nodes", "system:node:node1"),
}
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters:
  - name: cluster
    cluster: {{server: "https://127.0.0.1:6443", certificate-authority: {directory}/ca.crt}}
users:
  - name: user
    user: {{client-certificate: {directory}/{name}.crt, client-key: {directory}/{name}.key}}
contexts:
  - name: context
    context: {{cluster: cluster, user: user}}
current-context: context
"""


def make_certificates(directory: str) -> None:
    """Writes `NAME.crt`, `NAME.key`, the kubeconfigs, and the key pair of service accounts."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(f"{directory}/ca.crt")
    for name, names in _NAMES.items():
        organization, common = _SUBJECTS.get(name, ("cluster", name))
        leaf = authority.issue_cert(*names, organization_name=organization, common_name=common)
        leaf.cert_chain_pems[0].write_to_path(f"{directory}/{name}.crt")
        leaf.private_key_pem.write_to_path(f"{directory}/{name}.key")
        if name in _SUBJECTS:
            with open(f"{directory}/{name}.kubeconfig", "w") as file:
                file.write(KUBECONFIG.format(directory=directory, name=name))
    _write_key(rsa.generate_private_key(65537, 2048), directory)


def _write_key(key: RSAPrivateKey, directory: str) -> None:
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    for name, content in (("sa.key", private), ("sa.pub", public)):
        with open(f"{directory}/{name}", "wb") as file:
            file.write(content)
