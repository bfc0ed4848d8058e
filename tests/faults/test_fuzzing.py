"""Hostile vault configs, manifests and configurations: by grammar, by mutation, by coverage."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.decoders import DECODERS, Mount, configuration, manifest, vault_config
from support.faults import SOAK, scaled
from support.openbao import manifest_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FUZZING = 60
"""Seconds of coverage-guided fuzzing per decoder."""

LONGEST = 30.0 if SOAK else 10.0
"""Seconds of processor time that a decoder may take for an input: more is a hang."""

tuned = settings(
    max_examples=scaled(50, 5000),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# grammars: what such a file consists of, with what a hostile author would put in its places

STEPS = st.sampled_from(
    [
        "a",
        "b",
        "sub",
        "..",
        ".",
        "",
        "out",
        "up",
        "beside",
        "file",
        "magic",
        "loop",
        "..data",
        "%2e%2e",
        "a\0",
        "a\n",
        "\u202e",
        "~",
        "$HOME",
        "a" * 300,
        "\ud800",
        "root-outside",
    ]
)
TAILS = st.lists(STEPS, max_size=4).map("/".join)
NAMES = st.one_of(st.sampled_from(["n", "m", "", "\0", "a\u200b"]), st.text(max_size=5))
SCOPES = st.one_of(
    st.fixed_dictionaries(
        {"resource_type": st.sampled_from(["Client", "Client/x", "", None, 1])},
        optional={"id": st.sampled_from(["x", "", "*", None, "../x"])},
    ),
    st.lists(st.sampled_from(["Client", "Client/x", "", 1]), max_size=3),
    st.none(),
)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def entries(root: str) -> st.SearchStrategy[Any]:
    """Vault configs whose paths begin in a root, beside it, or anywhere."""
    heads = st.sampled_from([root, f"{root}/", f"{root}-outside", "", "/", "/proc/self", "//"])
    paths = st.tuples(heads, TAILS).map(lambda both: f"{both[0]}/{both[1]}")
    entry = st.one_of(
        st.fixed_dictionaries({"path": paths, "scope": SCOPES}),
        st.fixed_dictionaries({"path": JUNK, "scope": JUNK}),
        JUNK,
    )
    there = st.sampled_from(["a", "b", "sub/a", "sub/b", "file", "out/a", "up/root-outside/b"])
    likely = st.one_of(there.map(lambda name: f"{root}/{name}"), paths)
    good = st.fixed_dictionaries({"path": likely, "scope": st.just({"resource_type": "Client"})})
    return st.one_of(
        st.dictionaries(st.sampled_from("abcdef"), good, max_size=6),
        st.dictionaries(NAMES, entry, max_size=4),
    ).map(lambda found: {"secret": found})


OBJECTS = st.lists(
    st.fixed_dictionaries(
        {
            "objectName": st.one_of(TAILS, JUNK),
            "secretPath": st.one_of(st.just("a/b"), TAILS, JUNK),
        },
        optional={
            "secretKey": JUNK,
            "filePermission": st.one_of(st.integers(), st.sampled_from(["0644", "07777", "0o644"])),
            "encoding": st.sampled_from(["base64", "hex", "utf-16", "", None]),
            "method": st.sampled_from(["GET", "get", "G\nT", ""]),
            "secretArgs": JUNK,
        },
    ),
    max_size=3,
)
MANIFESTS = st.fixed_dictionaries(
    {
        "apiVersion": st.sampled_from(["secrets-store.csi.x-k8s.io/v1", "v1", None]),
        "kind": st.sampled_from(["SecretProviderClass", "Secret"]),
        "metadata": st.one_of(st.just({"name": "n"}), JUNK),
        "spec": st.one_of(
            st.fixed_dictionaries(
                {
                    "provider": st.sampled_from(["vault", "openbao", "azure", "", "x"]),
                    "parameters": st.fixed_dictionaries(
                        {"objects": st.one_of(OBJECTS.map(json.dumps), st.text(max_size=20))},
                        optional={
                            "vaultAddress": st.sampled_from(["https://v", "http://u:p@v", "x", ""]),
                            "vaultNamespace": st.text(max_size=5),
                            "vaultSkipTLSVerify": st.sampled_from(["true", "yes", 1]),
                        },
                    ),
                }
            ),
            JUNK,
        ),
    }
)
SETTINGS = st.fixed_dictionaries(
    {"vault_config": st.one_of(st.just("/v.json"), TAILS, JUNK)},
    optional={
        "state_dir": st.one_of(TAILS.map(lambda tail: f"/{tail}"), JUNK),
        "watch": st.one_of(
            st.fixed_dictionaries(
                {},
                optional={
                    "roots": st.lists(st.one_of(TAILS.map(lambda tail: f"/{tail}"), JUNK)),
                    "settle": st.sampled_from(["50ms", "-1s", "1e999", "nan", 1, "9" * 400]),
                    "max_secret_size": st.sampled_from(["1MiB", "-1", "1e9", 0, "9" * 400 + "GiB"]),
                },
            ),
            JUNK,
        ),
        "consumers": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.one_of(st.just("n"), NAMES),
                    "kind": st.sampled_from(["webhook", "x"]),
                    "url": st.sampled_from(
                        [
                            "http://h",
                            "file:///etc/passwd",
                            "http://u:p@h",
                            "http://[::1",
                            "h\r\nX: y",
                        ]
                    ),
                },
                optional={"headers": st.dictionaries(NAMES, NAMES, max_size=2)},
            ),
            max_size=2,
        ),
        "api": JUNK,
        "provision": JUNK,
    },
)


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    mount = Mount()
    yield mount
    mount.close()


@contextmanager
def bounded(what: str) -> Iterator[list[float]]:
    """Fails if the block takes too long; appends how long it took.

    Processor time, since the time on the clock depends on what else the machine does.
    """
    took: list[float] = []
    started = time.process_time()
    yield took
    took.append(time.process_time() - started)
    assert took[0] < LONGEST, f"{what} took {took[0]:.0f} s"


def mutate(text: bytes, mutations: list[tuple[float, bytes, int]]) -> bytes:
    """Puts bytes in places, over so many that were there."""
    for place, piece, over in mutations:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + over :]
    return text


PIECES = st.one_of(
    st.sampled_from([b"{", b"}", b"[", b"]", b":", b"- ", b"&a ", b"*a", b"\n", b"\t", b"'", b'"'])
    | st.sampled_from(
        [b"\xff", b"\0", b"\\u0000", b"!!python/object:os.system ", b"<<: ", b"---\n"]
    )
    | st.sampled_from([b"9" * 5000, b"\xef\xbb\xbf", b"%YAML 1.9\n", b"1e999", b"../", b"0x"]),
    st.binary(max_size=4),
)
MUTATIONS = st.lists(st.tuples(st.floats(0, 1), PIECES, st.integers(0, 8)), max_size=6)


def test_paths_of_a_vault_config(mount: Mount, count: Callable[[str], None]) -> None:
    """Whatever paths a vault config names, what is read lies in the root."""
    good = {"secret": {"n": {"path": f"{mount.root}/a", "scope": {"resource_type": "Client"}}}}
    assert mount.check(json.dumps(good).encode()) == 1
    found = tried = 0

    @tuned
    @given(entries(mount.root), MUTATIONS)
    def run(config: Any, mutations: list[tuple[float, bytes, int]]) -> None:
        nonlocal found, tried
        text = json.dumps(config).encode()
        for one in (text, mutate(text, mutations)):
            with bounded("an input"):
                vault_config(one)
                found += mount.check(one)
            tried += 1

    run()
    count(f"inputs {tried}, secrets read {found}, of them from outside the root 0")


def test_manifests(count: Callable[[str], None]) -> None:
    """Whatever a manifest says, its files stay in the target."""
    tried = 0

    @tuned
    @given(st.one_of(MANIFESTS, JUNK), MUTATIONS)
    def run(tree: Any, mutations: list[tuple[float, bytes, int]]) -> None:
        nonlocal tried
        text = json.dumps(tree).encode()  # JSON is YAML
        for one in (text, mutate(text, mutations)):
            with bounded("an input"):
                manifest(one)
            tried += 1

    run()
    count(f"inputs {tried}, tracebacks 0, paths outside the target 0")


def test_configurations(count: Callable[[str], None]) -> None:
    """Whatever a configuration says, it is one, or there are findings."""
    tried = 0

    @tuned
    @given(st.one_of(SETTINGS, JUNK), MUTATIONS)
    def run(tree: Any, mutations: list[tuple[float, bytes, int]]) -> None:
        nonlocal tried
        text = json.dumps(tree).encode()
        for one in (text, mutate(text, mutations)):
            with bounded("an input"):
                configuration(one)
            tried += 1

    run()
    count(f"inputs {tried}, tracebacks 0")


SIZE = scaled(5_000, 100_000)
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(9)
)
BOMBS = {
    "aliases in arguments": manifest_text(
        "- {objectName: a, secretPath: b, secretArgs: &a {x: 1}}\n"
        + "".join(
            "- {{objectName: a{}, secretPath: b, secretArgs: &{} {{x: [{}]}}}}\n".format(
                n, n, ",".join([f"*{was}"] * 9)
            )
            for was, n in zip("abcdefghi", "bcdefghij", strict=True)
        )
    ).encode(),
    "nested lists": b"[" * SIZE,
    "nested objects": b'{"a":' * SIZE,
    "nested dashes": b"- " * SIZE,
    "nested indents": b"".join(b" " * n + b"a:\n" for n in range(500)),
    "aliases": BOMB,
    "an alias of itself": b"a: &a [*a]\n",
    "merges": b"a: &a {x: 1}\nb: {<<: [" + b"*a," * 10_000 + b"]}\n",
    "a long number": b'{"secret": ' + b"9" * SIZE + b"}",
    "a long float": b'{"secret": 1e' + b"9" * SIZE + b"}",
    "a long string": b'{"secret": "' + b"a" * SIZE * 10 + b'"}',
    "a long key": b'{"' + b"/../" * SIZE + b'": {}}',
    "many keys": b'{"secret": {' + b",".join(b'"%d":1' % n for n in range(SIZE // 5)) + b"}}",
    "spaces": b" " * SIZE + b"a",
    "quotes": b'"' * SIZE,
    "tags": b"!" * SIZE,
    "a Python object": b"!!python/object/apply:os.system ['touch /tmp/pwned']",
    "surrogates": b'{"secret": {"\\ud800": {"path": "/\\ud800"}}}',
    "UTF-16": '{"secret": {}}'.encode("utf-16"),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_bombs(decoder: str, count: Callable[[str], None]) -> None:
    """What is made to take for ever, or all of the memory, is refused in time."""
    worst = 0.0
    for name, text in BOMBS.items():
        with bounded(name) as took:
            DECODERS[decoder](text)
        worst = max(worst, *took)
    count(f"inputs {len(BOMBS)}, tracebacks 0, slowest {worst * 1000:.0f} ms")


@pytest.mark.skipif(not SOAK, reason="coverage-guided fuzzing is a matter of `make soak`")
@pytest.mark.parametrize("decoder", DECODERS)
def test_coverage_guided(decoder: str, tmp_path: Path, count: Callable[[str], None]) -> None:
    """atheris finds no input that breaks what must hold, or takes long."""
    for number, text in enumerate(BOMBS.values()):
        (tmp_path / f"{number}").write_bytes(text[:512])
    for number, tree in enumerate(({"vault_config": "/v.json"}, {"secret": {"a": {"path": "/a"}}})):
        (tmp_path / f"seed-{number}").write_text(json.dumps(tree))
    done = subprocess.run(
        [
            *(sys.executable, os.path.join(os.path.dirname(__file__), "fuzz.py"), decoder),
            *(f"-max_total_time={FUZZING}", f"-timeout={LONGEST:.0f}", "-rss_limit_mb=2048"),
            *("-max_len=1024", f"-artifact_prefix={tmp_path}/", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None
    count(f"inputs {runs[1]} in {FUZZING} s, findings 0")
