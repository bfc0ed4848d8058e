"""Sessions of requests, with syncd's TLS and bounds, and no hand in requests or urllib3."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from syncd.core.errors import RefusedError
from syncd.net import direct_session, requests_session
from syncd.net.requests_session import make_session
from syncd.net.rotating_session import RotatingSession
from syncd.net.tls import Trust

if TYPE_CHECKING:
    from types import ModuleType


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_tls_is_configured_however_the_scheme_is_written(tmp_path: Path, scheme: str) -> None:
    """Else requests' own CAs would be trusted, and an answer of any length read."""
    trust = Trust(ca_file=str(tmp_path / "missing"))
    session = RotatingSession(f"{scheme}://v", trust, make_session)
    with pytest.raises(RefusedError, match="missing"):
        session.current()
    session = RotatingSession(f"{scheme}://v", Trust(skip_verify=True), make_session)
    adapter = session.current().get_adapter(f"{scheme}://v/v1/x")
    assert isinstance(adapter, requests_session._Adapter)
    session.close()


@pytest.mark.parametrize("module", [requests_session, direct_session])
def test_no_private_part_of_another_library_is_used(module: ModuleType) -> None:
    """An upgrade of requests, urllib3 or Python may change these without notice."""
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_bytes())
    own = {"self", "_Adapter", "_Body"}
    private = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in own)
    ]
    assert private == []
