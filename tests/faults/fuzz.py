"""Coverage-guided fuzzing of one decoder by atheris: `fuzz.py DECODER [LIBFUZZER OPTION…]`.

`make soak` installs atheris and runs it; `support/decoders.py` says what must hold.
"""

from __future__ import annotations

import os
import sys

import atheris

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
with atheris.instrument_imports(include=["syncd", "yaml", "json"]):
    from support.decoders import DECODERS

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], DECODERS[sys.argv[1]])
    atheris.Fuzz()
