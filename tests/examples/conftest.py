import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where TensorFlow Datasets keeps what a test run has prepared: each set once."""
    return tmp_path_factory.mktemp("tensorflow_datasets")
