from __future__ import annotations

import hashlib

import pytest

from examples._installed_file import InstalledFile


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package `tiny-data` 1.2, whose import would fail."""
    (tmp_path / "tiny_data").mkdir()
    (tmp_path / "tiny_data" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "tiny_data" / "data.bin").write_bytes(b"numbers")
    information = tmp_path / "tiny_data-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def tiny_data(path="tiny_data/data.bin", content=b"numbers", package="tiny-data", **kwargs):
    return InstalledFile(package, "1.2", path, hashlib.sha256(content).hexdigest(), **kwargs)


def test_a_file_is_found_without_importing_its_package(installed):
    assert tiny_data().locate() == installed / "tiny_data" / "data.bin"


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    command = r"pip install --no-deps no-such-data==1\.2$"
    with pytest.raises(ImportError, match=rf"`no-such-data`, which is not installed.* {command}"):
        tiny_data(package="no-such-data").locate()
    with pytest.raises(ImportError, match=r"pip install no-such-data==1\.2$"):
        tiny_data(package="no-such-data", no_dependencies=False).locate()


def test_a_missing_file_is_named_with_the_version_found(installed):
    with pytest.raises(ImportError, match=r"`tiny-data` 1\.2 has no file 'tiny_data/other\.bin'"):
        tiny_data(path="tiny_data/other.bin").locate()


def test_another_content_is_refused_with_both_checksums(installed):
    expected, received = (hashlib.sha256(c).hexdigest() for c in (b"others", b"numbers"))
    message = rf"Expected: sha256={expected}\. Received: sha256={received}\. .*--force-reinstall"
    with pytest.raises(ValueError, match=message):
        tiny_data(content=b"others").locate()
