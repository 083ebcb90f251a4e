"""Says what is missing and how to get it, instead of a traceback."""

import sys
from importlib.util import find_spec


def need_modules(*modules: str) -> None:
    """Ends the script if one of them cannot be imported; call it before importing them."""
    missing = [m for m in modules if find_spec(m) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}. Get it by: pip install {' '.join(missing)}")
