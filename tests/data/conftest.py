import pytest

from tests.data import builders


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A prepared builder of 20 training and 6 test images."""
    builder = builders.TinyImages(data_dir=tmp_path_factory.mktemp("tiny"))
    builder.download_and_prepare()
    return builder
