"""Files that come with installed packages: found without importing the package, and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class InstalledFile:
    """A file of a package from the Python package index, known by its contents.

    Importing the package would run its code and need its dependencies; the file alone is
    neither code nor needs anything.

    Args:
        package: The package's name on the index.
        version: The version that the example was written for.
        path: The file's path inside the installed package.
        sha256: The file's checksum, in hexadecimal.
        no_dependencies: Whether to advise installing without the package's dependencies.
    """

    package: str
    version: str
    path: str
    sha256: str
    no_dependencies: bool = True

    def locate(self) -> Path:
        """Returns where the file lies, after checking that it is the right one.

        Raises:
            ImportError: If the package, or the file in it, is not installed.
            ValueError: If the file's checksum is another.
        """
        try:
            distribution = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise ImportError(
                f"This example reads a file of the package `{self.package}`, which is not "
                f"installed. Install it: {self._command()}"
            ) from None
        file = Path(str(distribution.locate_file(self.path)))
        if not file.is_file():
            raise ImportError(
                f"The installed `{self.package}` {distribution.version} has no file {self.path!r}. "
                f"Install the version that this example was written for: {self._command()}"
            )
        received = hashlib.sha256(file.read_bytes()).hexdigest()
        if received != self.sha256:
            raise ValueError(
                f"{self.path!r} of the installed `{self.package}` {distribution.version} is not "
                "the file that this example was written for. "
                f"Expected: sha256={self.sha256}. Received: sha256={received}. "
                f"Install it anew: {self._command('--force-reinstall ')}"
            )
        return file

    def _command(self, options: str = "") -> str:
        if self.no_dependencies:
            options = f"--no-deps {options}"
        return f"pip install {options}{self.package}=={self.version}"
