"""Machine code for tests: NASM text looked up in snippets.json, so that no assembler is needed to run the tests.

With NASM on the machine and SHADOWVM_ASSEMBLE=1 a snippet that is not there is assembled and added.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

TABLE = Path(__file__).with_name("snippets.json")
_known: dict[str, str] = json.loads(TABLE.read_text()) if TABLE.exists() else {}


def asm(source: str, org: int = 0, bits: int = 64) -> bytes:
    """The bytes of 16-, 32- or 64-bit code at `org`."""
    mode = "" if bits == 64 else f"{bits}\n"
    key = hashlib.sha256(f"{mode}{org:x}\n{source}".encode()).hexdigest()[:20]
    if key not in _known:
        if not os.environ.get("SHADOWVM_ASSEMBLE"):
            raise LookupError(f"not assembled: {source!r} at {org:#x}")
        _known[key] = _nasm(source, org, bits).hex()
        TABLE.write_text(json.dumps(dict(sorted(_known.items())), indent=0) + "\n")
    return bytes.fromhex(_known[key])


def _nasm(source: str, org: int, bits: int) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        text, out = Path(directory, "a.s"), Path(directory, "a.bin")
        text.write_text(f"bits {bits}\norg {org}\n{'default abs' if bits == 64 else ''}\n{source}\n")
        subprocess.run(["nasm", "-f", "bin", "-o", out, text], check=True)
        return out.read_bytes()
