"""Files that travel with the package: schema.sql and the samples and fixtures of conf/.

A wheel carries them as ``backendai_mgr/data``; a checkout has them at its top level.
"""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path


def resource(name: str) -> Traversable:
    """The file or directory *name*, such as ``schema.sql`` or ``conf/images``; or FileNotFoundError."""
    packaged = files("backendai_mgr").joinpath("data", *name.split("/"))
    if packaged.is_file() or packaged.is_dir():
        return packaged
    checkout = Path(__file__).parents[2] / name
    if checkout.exists():
        return checkout
    raise FileNotFoundError(f"{name} is not part of this installation")
