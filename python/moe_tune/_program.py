"""Starts the `moe-tune` program that lies inside the package."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Becomes the program: its exit status and its signals are what the caller sees."""
    program = pathlib.Path(__file__).resolve().parent / "bin" / "moe-tune"
    if not program.is_file():
        sys.exit(f"error: there is no {program}: this installation of moe-tune has no program")
    try:
        os.execv(program, [str(program), *sys.argv[1:]])
    except OSError as error:
        sys.exit(f"error: cannot run {program}: {error.strerror}")


if __name__ == "__main__":
    main()
