import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy

from keras_transfer import TransferModel
from keras_transfer.layers import ClassificationHead
from keras_transfer.weights import named_weights, transfer_weights
from keras_transfer.weights.sources import open_source
from tests.processes import run_code, run_in_child
from tests.weights import models


def as_safetensors(model, path):
    arrays = {w.path: np.ascontiguousarray(w.variable.numpy()) for w in named_weights(model)}
    safetensors.numpy.save_file(arrays, path)


def saved(model, path):
    if path.name.endswith(".safetensors"):
        as_safetensors(model, path)
    elif path.name.endswith(".keras"):
        model.save(path)
    else:
        model.save_weights(path)
    return path


FILES = ["source.keras", "source.weights.h5", "source.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_what_its_model_gives(tmp_path, name):
    source = models.randomize(models.classifier(5))
    source.compile("adam", "mse")
    source.fit(np.ones((4, 8, 8, 3)), np.ones((4, 5)), verbose=0)
    target = models.classifier(5)
    report = transfer_weights(saved(source, tmp_path / name), target)
    assert all(models.equal(target, source.get_weights()))
    assert report.copied_share == 1.0
    assert report.unused == ()
    assert report.source == f"file {name!r}"


@pytest.mark.parametrize("name", FILES)
def test_a_file_can_be_mapped_by_names_though_keras_numbers_weights(tmp_path, name):
    source = models.randomize(models.classifier(5))
    target = models.classifier(2, nested=False)
    mapping = {"stem_norm": "backbone/stem_norm", "features/(.*)": r"backbone/features/\1"}
    report = transfer_weights(str(saved(source, tmp_path / name)), target, mapping)
    body = source.get_layer("backbone")
    for layer in ("stem_norm", "features"):
        for one, two in zip(
            target.get_layer(layer).get_weights(), body.get_layer(layer).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(one, two)
    assert len(report.with_status("copied")) == 6


@pytest.mark.parametrize("name", FILES)
def test_a_backbone_is_found_in_the_file_of_a_larger_model(tmp_path, name):
    source, target = models.randomize(models.classifier(5)), models.backbone()
    transfer_weights(saved(source, tmp_path / name), target)
    assert all(models.equal(target, source.get_layer("backbone").get_weights()))


def test_attention_recurrent_and_subclassed_models_come_back_from_files(tmp_path):
    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = [keras.layers.Dense(8, name="first"), keras.layers.Dense(8, name="second")]

        def build(self, shape):
            for layer in self.inner:
                layer.build(shape)

        def call(self, x):
            return self.inner[1](self.inner[0](x))

    def build():
        inputs = keras.Input((5, 8))
        x = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
        x = Block(name="block")(x)
        x = keras.layers.Bidirectional(keras.layers.GRU(3, name="gru"), name="memory")(x)
        return keras.Model(inputs, x)

    source, target = models.randomize(build()), build()
    for name in FILES[1:]:
        models.randomize(target, seed=9)
        transfer_weights(saved(source, tmp_path / name), target)
        assert all(models.equal(target, source.get_weights())), name


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named_and_nothing_is_copied(tmp_path, name):
    path = saved(models.backbone(), tmp_path / name)
    content = path.read_bytes()
    target = models.backbone()
    before = models.values(target)
    for damaged in (b"", b"not weights", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"cannot be read; it is damaged.*{name}.*bytes"):
            transfer_weights(path, target)
    assert all(models.equal(target, before))


def weights_file(path, **dataset):
    with h5py.File(path, "w") as file:
        file.create_group("layers/dense/vars").create_dataset("0", **dataset)


def compressed(path):
    """A `.keras` archive of which the middle of its compressed weights is overwritten."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(range(256)) * 9)
    content = bytearray(path.read_bytes())
    content[46:90] = bytes(44 * [255])
    path.write_bytes(content)


def eight_bits(path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"ab")


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("w.keras", compressed, "decompressing"),
        ("w.weights.h5", lambda path: weights_file(path, data="abc"), "no numbers: .*/0"),
        ("w.weights.h5", lambda path: weights_file(path, data=h5py.Empty("f4")), "no numbers"),
        (
            "w.weights.h5",
            lambda path: weights_file(path, shape=(1 << 44,), chunks=(1024,), dtype="f4"),
            "Unable to allocate",
        ),
        ("w.safetensors", eight_bits, "NumPy lacks .*float8.*as float32"),
    ],
    ids=["deflated", "text", "empty", "64 TiB", "float8"],
)
def test_whatever_a_reader_raises_names_the_file(tmp_path, name, write, said):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"cannot be read; .*{name}.*The reader said: .*{said}"):
        transfer_weights(tmp_path / name, models.backbone())


def test_damaged_names_are_named_and_do_not_hang(tmp_path):
    # The HDF5 library reads such names for ever.
    path, target = tmp_path / "m.weights.h5", models.backbone()
    target.save_weights(path)
    content = path.read_bytes()
    at = content.index(b"stem_norm")  # its entry begins 16 bytes before
    path.write_bytes(content[: at - 16] + bytes(32) + content[at + 16 :])
    with pytest.raises(ValueError, match=r"it is damaged.*m.weights.h5.*zeros in place of a layer"):
        transfer_weights(path, target)
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.write(path, "model.weights.h5")
    with pytest.raises(ValueError, match=r"it is damaged.*m.keras.*zeros in place of a layer"):
        transfer_weights(tmp_path / "m.keras", target)
    model = TransferModel(target, ClassificationHead(2))
    with pytest.raises(ValueError, match=r"it is damaged.*m.weights.h5.*save it anew.*zeros"):
        model.load_weights(path)


def test_a_keras_archive_without_weights_is_damaged(tmp_path):
    path = tmp_path / "empty.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"no model.weights.h5 in the archive"):
        transfer_weights(path, models.backbone())


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "pytorch_model.bin", "w.pkl", "w.ckpt"])
def test_pickles_are_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"pickles.*safetensors.torch.save_file"):
        transfer_weights(tmp_path / name, models.backbone())


def test_other_kinds_and_missing_files_are_named(tmp_path):
    models.backbone().save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(
        FileNotFoundError, match=r"no weights file.*Did you mean 'model.weights.h5'"
    ):
        transfer_weights(tmp_path / "modle.weights.h5", models.backbone())
    with pytest.raises(ValueError, match=r"Whole-model HDF5 files are not read.*load_model"):
        transfer_weights(tmp_path / "model.h5", models.backbone())
    with pytest.raises(ValueError, match=r"must be a '.keras', '.weights.h5' or '.safetensors'"):
        transfer_weights(tmp_path / "model.onnx", models.backbone())
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(ValueError, match=r"must be a file. Received a folder"):
        transfer_weights(tmp_path / "folder.keras", models.backbone())
    with pytest.raises(TypeError, match="`source` must be a Keras model or the path"):
        transfer_weights(7, models.backbone())


def test_a_weights_file_cannot_name_another_file(tmp_path):
    models.backbone().save_weights(tmp_path / "secret.weights.h5")
    with h5py.File(tmp_path / "linked.weights.h5", "w") as file:
        file["layers"] = h5py.ExternalLink(str(tmp_path / "secret.weights.h5"), "/layers")
    with pytest.raises(ValueError, match="holds a link instead of data"):
        transfer_weights(tmp_path / "linked.weights.h5", models.backbone())
    with h5py.File(tmp_path / "outside.weights.h5", "w") as file:
        group = file.create_group("layers/dense/vars")
        raw = [(str(tmp_path / "secret.weights.h5"), 0, 16)]
        group.create_dataset("0", (4,), "f4", external=raw)
    with pytest.raises(ValueError, match="its data lies in another file"):
        transfer_weights(tmp_path / "outside.weights.h5", models.backbone())


def test_bfloat16_weights_are_read_from_every_kind(tmp_path):
    source = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="a", dtype="bfloat16")]
    )
    wanted = source.get_weights()[0].astype("float32")
    for name in FILES:
        target = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="a")])
        transfer_weights(saved(source, tmp_path / name), target)
        np.testing.assert_array_equal(target.get_weights()[0], wanted)


def test_two_layers_of_one_name_are_never_guessed(tmp_path):
    with h5py.File(tmp_path / "twice.weights.h5", "w") as file:
        for group in ("layers/dense", "layers/dense_1"):
            made = file.create_group(f"{group}/vars")
            made.attrs["name"] = "features"
            made["0"] = np.ones((4, 6), "float32")
    source = open_source(tmp_path / "twice.weights.h5")
    assert source.repeated == {"features/0"}
    inputs = keras.Input((4,))
    target = keras.Model(inputs, keras.layers.Dense(6, name="features", use_bias=False)(inputs))
    with pytest.raises(ValueError, match="holds no weights"):
        transfer_weights(tmp_path / "twice.weights.h5", target)


def test_safetensors_is_asked_for_only_when_it_is_needed(tmp_path):
    models.backbone().save_weights(tmp_path / "a.weights.h5")
    (tmp_path / "a.safetensors").write_bytes(b"x")
    script = f"""
        import sys
        sys.modules["safetensors"] = None  # As if it were not installed.
        from keras_transfer.weights import transfer_weights
        from tests.weights import models
        transfer_weights({str(tmp_path / "a.weights.h5")!r}, models.backbone())
        try:
            transfer_weights({str(tmp_path / "a.safetensors")!r}, models.backbone())
        except ImportError as error:
            assert "pip install safetensors" in str(error), error
        else:
            raise AssertionError("no error")
    """
    run_code(script)


@pytest.mark.distributed
def test_both_replicas_get_the_weights():
    (found,) = run_in_child("tests.replicas.carrying")
    assert found["copies"] == [[wanted, wanted] for wanted in found["wanted"]]
    assert found["back"] == found["wanted"][: len(found["back"])]
