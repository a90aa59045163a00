"""PyTorch's axis order, checked against what PyTorch's layers compute (written out in NumPy)."""

import keras
import numpy as np
import pytest
import safetensors.numpy

from keras_transfer.weights import transfer_weights

RNG = np.random.default_rng(0)


def torch_file(path, arrays):
    arrays = {name: np.ascontiguousarray(a, dtype="float32") for name, a in arrays.items()}
    safetensors.numpy.save_file(arrays, path)
    return path


def torch_conv2d(x, weight):
    """Valid convolution of NCHW images with (out, in, h, w) weights, as torch defines it."""
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    return np.einsum("ncyxhw,ochw->noyx", windows, weight)


def test_a_square_linear_weight_is_transposed(tmp_path):
    weight, bias = RNG.normal(size=(4, 4)), RNG.normal(size=4)
    path = torch_file(tmp_path / "w.safetensors", {"fc.weight": weight, "fc.bias": bias})
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="head")])
    mapping = {"head/kernel": "fc.weight", "head/bias": "fc.bias"}
    transfer_weights(path, model, mapping, source_layout="torch")
    x = RNG.normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(model.predict(x, verbose=0), x @ weight.T + bias, rtol=1e-5)


def test_a_convolution_computes_what_torch_computes(tmp_path):
    weight = RNG.normal(size=(5, 2, 3, 3))
    path = torch_file(tmp_path / "w.safetensors", {"conv.weight": weight})
    model = keras.Sequential(
        [keras.Input((6, 7, 2)), keras.layers.Conv2D(5, 3, use_bias=False, name="conv")]
    )
    transfer_weights(path, model, {r"(.*)/kernel": r"\1.weight"}, source_layout="torch")
    x = RNG.normal(size=(2, 2, 6, 7)).astype("float32")
    got = model.predict(np.moveaxis(x, 1, -1), verbose=0)
    np.testing.assert_allclose(np.moveaxis(got, -1, 1), torch_conv2d(x, weight), atol=1e-4)


def test_a_depthwise_convolution_computes_what_torch_computes(tmp_path):
    channels, multiplier = 3, 2
    weight = RNG.normal(size=(channels * multiplier, 1, 3, 3))
    path = torch_file(tmp_path / "w.safetensors", {"conv.weight": weight})
    layer = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="conv")
    model = keras.Sequential([keras.Input((5, 5, channels)), layer])
    transfer_weights(path, model, {r"conv/kernel": "conv.weight"}, source_layout="torch")
    x = RNG.normal(size=(2, channels, 5, 5)).astype("float32")
    got = np.moveaxis(model.predict(np.moveaxis(x, 1, -1), verbose=0), -1, 1)
    for output in range(channels * multiplier):
        channel = output // multiplier  # groups=in_channels in torch
        one = torch_conv2d(x[:, channel : channel + 1], weight[output : output + 1])
        np.testing.assert_allclose(got[:, output : output + 1], one, atol=1e-4)


def test_attention_projections_are_split_into_heads(tmp_path):
    weight, bias = RNG.normal(size=(8, 6)), RNG.normal(size=8)
    path = torch_file(tmp_path / "w.safetensors", {"q.weight": weight, "q.bias": bias})
    inputs = keras.Input((5, 6))
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    model = keras.Model(inputs, attention(inputs, inputs))
    mapping = {"attention/query/kernel": "q.weight", "attention/query/bias": "q.bias"}
    transfer_weights(path, model, mapping, source_layout="torch")
    x = RNG.normal(size=(1, 5, 6)).astype("float32")
    query = next(w for w in model.layers[1]._flatten_layers() if w.name == "query")
    got = keras.ops.convert_to_numpy(query(x)).reshape(1, 5, 8)
    np.testing.assert_allclose(got, x @ weight.T + bias, rtol=1e-4, atol=1e-5)


def test_embeddings_stay_as_they_are(tmp_path):
    table = RNG.normal(size=(4, 4))
    path = torch_file(tmp_path / "w.safetensors", {"emb.weight": table})
    model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(4, 4, name="emb")])
    transfer_weights(path, model, {"emb/embeddings": "emb.weight"}, source_layout="torch")
    np.testing.assert_array_equal(model.get_weights()[0], table.astype("float32"))


def test_recurrent_layers_are_refused(tmp_path):
    path = torch_file(tmp_path / "w.safetensors", {"w": np.ones((9, 4))})
    model = keras.Sequential([keras.Input((5, 4)), keras.layers.GRU(3, name="gru")])
    with pytest.raises(ValueError, match="PyTorch orders a GRU's gates differently"):
        transfer_weights(path, model, {"gru/.*/kernel": "w"}, source_layout="torch")
