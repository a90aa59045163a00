"""32,000 pretrained word-piece vectors (WordLlama) for networks that begin with an embedding."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples._installed_file import InstalledFile

VECTORS = InstalledFile(
    package="wordllama",
    version="0.4.0.post1",
    path="wordllama/weights/l2_supercat_256.safetensors",
    sha256="64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
)
TOKENIZER = InstalledFile(
    package="wordllama",
    version="0.4.0.post1",
    path="wordllama/tokenizers/l2_supercat_tokenizer_config.json",
    sha256="93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
)


def word_vectors() -> NDArray[np.float32]:
    """Loads the vectors, `(32001, 256)`: zeros for padding, then one for each token.

    Raises:
        ImportError: If the package with the vectors, or `safetensors`, is not installed.
        ValueError: If its file is not the expected one.
    """
    from safetensors.numpy import load_file

    vectors = load_file(VECTORS.locate())["embedding.weight"].astype(np.float32)
    return np.concatenate([np.zeros_like(vectors[:1]), vectors])


@functools.cache
def _tokenizer() -> Any:
    # Kept, since reading its 32,000 tokens takes far longer than a few hundred texts do.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER.locate()))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenize(texts: Sequence[str], length: int) -> NDArray[np.int32]:
    """Turns texts into token numbers, `(texts, length)`: cut at `length`, 0 for padding.

    The tokenizer has no number for padding, so its own numbers are moved up by one.

    Raises:
        ImportError: If the package with the vocabulary, or `tokenizers`, is not installed.
    """
    tokenizer = _tokenizer()
    numbers = np.zeros((len(texts), length), np.int32)
    for row, text in zip(numbers, texts, strict=True):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids[:length]
        row[: len(tokens)] = np.array(tokens, np.int32) + 1
    return numbers
