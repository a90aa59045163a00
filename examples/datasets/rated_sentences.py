"""Sentences that people rated from -4 to 4 (VADER's ground truth, MIT), from four sources."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SDIST = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
# The corpora are only in the source archive, which is not installed but kept as it is.
FOLDER = Path(sys.prefix) / "share" / "keras_transfer_examples"
COMMAND = "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2"
_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = {
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}


def load(source: str, archive: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Loads the sentences of a source, each once.

    Args:
        source: One of `SOURCES`.
        archive: The source archive of `vaderSentiment`, which is read where it lies.

    Returns:
        Sentences, and the mean rating of each.

    Raises:
        FileNotFoundError: If there is no archive.
        ValueError: If the archive is not the expected one.
    """
    if not archive.is_file():
        raise FileNotFoundError(
            f"The sentences are in the source archive of `vaderSentiment`, which is not in "
            f"{str(archive.parent)!r}. Get it: {COMMAND} -d {archive.parent}"
        )
    content = archive.read_bytes()
    received = hashlib.sha256(content).hexdigest()
    if received != SHA256:
        raise ValueError(
            f"{archive.name!r} is not the file that this example was written for. Expected: "
            f"sha256={SHA256}. Received: sha256={received}. Get it anew: {COMMAND}"
        )
    with tarfile.open(fileobj=io.BytesIO(content)) as outer:
        inner = outer.extractfile(_ARCHIVE)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as corpora:
            file = corpora.extractfile(f"hutto_ICWSM_2014/{SOURCES[source]}")
            assert file is not None
            lines = file.read().decode("latin-1").splitlines()
    ratings: dict[str, float] = {}
    for line in lines:
        _, rating, text = line.split("\t", 2)
        # A copy in the test set of a sentence in the training set would be counted as learnt.
        ratings.setdefault(text.strip(), float(rating))
    return list(ratings), np.array(list(ratings.values()), np.float32)
