"""Says what is missing and how to get it, instead of a traceback."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = {"PIL": "pillow"}


def need_modules(*modules: str) -> None:
    """Ends the script if one of them cannot be imported; call it before importing them."""
    missing = [PACKAGES.get(m, m) for m in modules if find_spec(m) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}. Get it by: pip install {' '.join(missing)}")


def need_espeak() -> None:
    if not shutil.which("espeak-ng"):
        sys.exit("not installed: espeak-ng. Get it by: apt-get install espeak-ng (or from its project page)")


def need_file(path: Path, how: str) -> Path:
    """The path of a file that another script writes."""
    if not path.is_file():
        sys.exit(f"{path} is missing: {how}")
    return path
