import base64
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_transfer.data import TaskSpec, load
from tests.data import builders
from tests.processes import run_code


def read(dataset):
    """All inputs and labels, in order."""
    batches = list(dataset.as_numpy_iterator())
    return tuple(np.concatenate([batch[i] for batch in batches]) for i in range(2))


def test_a_builder_gives_what_fit_takes_and_the_facts(tiny):
    (train, test), spec = load(tiny, ["train", "test"], batch_size=8)
    assert spec == TaskSpec(
        "tiny_images/1.0.0",
        (6, 5, 3),
        "float32",
        3,
        ("cat", "dog", "yak"),
        "sparse_categorical_crossentropy",
        ("accuracy",),
        {"train": 20, "test": 6},
    )
    assert (train.cardinality(), test.cardinality()) == (3, 1)
    model = keras.Sequential(
        [keras.Input(spec.input_shape), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    )
    model.compile("sgd", spec.loss, metrics=list(spec.metrics))
    history = model.fit(train, validation_data=test, epochs=2, shuffle=False, verbose=0).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}


def test_images_and_labels_belong_together_and_keep_their_values(tiny):
    images, labels = read(load(tiny, "train")[0])
    assert images.dtype == np.float32
    wanted = {builders.picture(i % 3, i).tobytes(): i % 3 for i in range(20)}
    found = {
        image.astype(np.uint8).tobytes(): label for image, label in zip(images, labels, strict=True)
    }
    assert found == wanted


@pytest.mark.usually("folder", "name")
@pytest.mark.parametrize("kind", ["object", "class", "folder", "name", "path"])
def test_every_door_leads_to_the_same_examples(tiny, kind):
    data_dir = os.path.dirname(os.path.dirname(tiny.data_path))
    doors = {
        "object": (tiny, {}),
        "class": (builders.TinyImages, {"data_dir": data_dir}),
        "folder": (os.fspath(tiny.data_path), {}),
        "name": ("tiny_images", {"data_dir": data_dir}),
        "path": (tiny.data_path, {}),
    }
    source, options = doors[kind]
    dataset, spec = load(source, "train", download=False, **options)
    images, labels = read(dataset)
    wanted_images, wanted_labels = read(load(tiny, "train")[0])
    np.testing.assert_array_equal(images, wanted_images)
    np.testing.assert_array_equal(labels, wanted_labels)
    assert spec.class_names == ("cat", "dog", "yak")


def test_slices_are_disjoint_and_make_up_the_whole(tiny):
    (head, tail), spec = load(tiny, ["train[:70%]", "train[70%:]"])
    assert spec.examples == {"train[:70%]": 14, "train[70%:]": 6}
    together = np.concatenate([read(head)[0], read(tail)[0]])
    np.testing.assert_array_equal(together, read(load(tiny, "train")[0])[0])
    assert load(tiny, "train+test")[1].examples == {"train+test": 26}


@pytest.mark.usually("False", "file")
@pytest.mark.parametrize("cache", [True, False, "auto", "file"])
def test_every_pass_has_the_same_order_whatever_the_cache(tiny, cache, tmp_path):
    cache = str(tmp_path / "kept") if cache == "file" else cache
    dataset, _ = load(tiny, "train", cache=cache)
    first, second = read(dataset), read(dataset)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[0], read(load(tiny, "train", cache=False)[0])[0])


def test_a_shuffle_is_new_in_each_epoch_and_the_same_for_the_same_seeds(tiny):
    def orders(seed):
        tf.random.set_seed(5)
        dataset, _ = load(tiny, "train", shuffle=True, seed=seed)
        return [read(dataset)[0].mean(axis=(1, 2, 3)).tolist() for _ in range(2)]

    one, again, other = orders(1), orders(1), orders(2)
    assert one[0] != one[1]
    assert one == again
    assert one != other
    assert sorted(one[0]) == sorted(one[1]) == sorted(other[0])


@pytest.mark.usually("4")
@pytest.mark.parametrize("size", [4, (4, 3)])
def test_images_are_resized(tiny, size):
    dataset, spec = load(tiny, "train", image_size=size, batch_size=None)
    height, width = size if isinstance(size, tuple) else (size, size)
    assert spec.input_shape == (height, width, 3)
    image, label = next(iter(dataset))
    assert image.shape == (height, width, 3)
    assert image.dtype == tf.float32
    original = next(iter(load(tiny, "train", batch_size=None)[0]))[0]
    wanted = tf.image.resize(original, (height, width), antialias=True)
    np.testing.assert_allclose(image, wanted, atol=1e-4)
    assert label.shape == ()


def test_other_targets_are_chosen_by_key(tiny):
    dataset, spec = load(tiny, "train", supervised_keys=("image", "brightness"))
    assert (spec.loss, spec.metrics) == ("mean_squared_error", ("mean_absolute_error",))
    assert spec.num_classes is None
    images, brightness = read(dataset)
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), brightness, rtol=1e-5)
    # A whole number may be a class or a count: no guess.
    assert load(tiny, "train", supervised_keys=("image", "count"))[1].loss is None


def test_a_builder_without_supervised_keys_asks_for_them(tmp_path):
    builder = builders.NoKeys(data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"does not say which.*Choose two of 'sound', 'word'"):
        load(builder)
    with pytest.raises(ValueError, match=r"has no feature 'wrod', only.*Did you mean 'word'"):
        load(builder, supervised_keys=("sound", "wrod"))
    with pytest.raises(ValueError, match=r"differ in shape.*\(None,\).*batch_size=None"):
        load(builder, supervised_keys=("sound", "word"))
    dataset, spec = load(builder, batch_size=None, supervised_keys=("sound", "word"))
    assert spec.input_shape == (None,)
    assert sorted(len(sound) for sound, _ in dataset) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="`image_size` is for images"):
        load(builder, image_size=4, supervised_keys=("sound", "word"))


def test_an_unknown_name_has_near_matches():
    with pytest.raises(ValueError, match=r"knows no data set 'mnsit'.*Did you mean 'mnist'"):
        load("mnsit")
    with pytest.raises(ValueError, match="cannot make the builder 'glue/colla'"):
        load("glue/colla")
    with pytest.raises(ValueError, match="There is no folder '/no/such/folder'"):
        load("/no/such/folder")
    with pytest.raises(TypeError, match="`name_or_builder` must be"):
        load(7)
    with pytest.raises(
        ValueError, match=r"cannot make the builder 'cifar-10'\. Did you mean 'cifar10'"
    ):
        load("cifar-10")


def test_an_unknown_split_is_named_with_those_there_are(tiny):
    with pytest.raises(ValueError, match=r"no split 'tests'.*has 'test', 'train'.*mean 'test'"):
        load(tiny, "tests")
    with pytest.raises(ValueError, match=r"cannot read split='train\[x\]'"):
        load(tiny, "train[x]")
    with pytest.raises(TypeError, match="`split` must be a name or a list"):
        load(tiny, None or [])


def test_where_a_download_is_impossible_the_error_says_how_to_prepare_the_data(tmp_path):
    offline = r"tfds build {} --data_dir=DATA.*copy the folder DATA here.*data_dir='DATA'"
    with pytest.raises(
        RuntimeError, match="ConnectionError: no route.*" + offline.format("needs_network")
    ):
        load(builders.NeedsNetwork(data_dir=tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)Fetch words.zip.*downloads/manual"):
        load(builders.NeedsFiles(data_dir=tmp_path))
    with pytest.raises(FileNotFoundError, match="not prepared in.*" + offline.format("mnist")):
        load("mnist", data_dir=tmp_path, download=False)


def test_a_builder_that_is_not_prepared_is_prepared(tmp_path):
    dataset, spec = load(builders.TinyImages, "test", data_dir=tmp_path)
    assert spec.examples == {"test": 6}
    assert len(read(dataset)[1]) == 6
    assert load("tiny_images", "test", data_dir=tmp_path, download=False)[1] == spec


def test_a_builder_object_and_a_data_dir_contradict_each_other(tiny, tmp_path):
    with pytest.raises(ValueError, match="has its own folder already"):
        load(tiny, data_dir=tmp_path)


# --- Folders of images ---------------------------------------------------------------------


def test_folders_by_class_load_as_keras_reads_them(tmp_path):
    root = builders.image_folder(tmp_path / "pets")
    dataset, spec = load(root, image_size=(6, 5))
    assert spec.class_names == ("cat", "dog")
    assert spec.name == "pets"
    assert spec.examples == {"train": 10}
    images, labels = read(dataset)
    wanted = keras.utils.image_dataset_from_directory(
        root, image_size=(6, 5), shuffle=False, verbose=False
    )
    wanted_images, wanted_labels = read(wanted)
    assert wanted.class_names == list(spec.class_names)
    assert sorted(labels) == sorted(wanted_labels)
    # Same images under the same labels; where nothing is resized, the very same values.
    same_size = [index for index in range(10) if index % 5 == 0]
    for index in same_size:
        gaps = abs(images - wanted_images[index]).max(axis=(1, 2, 3))
        assert gaps.min() == 0
        assert labels[gaps.argmin()] == wanted_labels[index]


def test_folders_by_split_load_as_tfds_reads_them(tmp_path):
    root = builders.image_folder(tmp_path, splits=("train", "test"), size=(6, 5))
    builder = tfds.folder_dataset.ImageFolder(os.fspath(root))
    for split in ("train", "test"):
        ours, spec = load(root, split, image_size=(6, 5))
        theirs, their_spec = load(builder, split, image_size=(6, 5))
        assert spec.class_names == their_spec.class_names == ("cat", "dog")
        assert spec.examples == their_spec.examples == {split: 10}
        sets = [
            {(image.tobytes(), int(label)) for image, label in zip(*read(dataset), strict=True)}
            for dataset in (ours, theirs)
        ]
        assert sets[0] == sets[1]


def test_folders_come_in_one_mixed_order_wherever_they_lie(tmp_path):
    labels = []
    for place in ("here", "there/deep"):
        root = builders.image_folder(tmp_path / place / "pets", per_class=20, size=(6, 5))
        labels.append(read(load(root, image_size=4)[0])[1].tolist())
    assert labels[0] == labels[1]
    assert set(labels[0][:10]) == {0, 1}


def test_slices_of_folders_are_disjoint_and_make_up_the_whole(tmp_path):
    root = builders.image_folder(tmp_path, size=(6, 5))
    (head, tail), spec = load(root, ["train[:80%]", "train[80%:]"], (6, 5))
    assert list(spec.examples.values()) == [8, 2]
    together = np.concatenate([read(head)[0], read(tail)[0]])
    np.testing.assert_array_equal(together, read(load(root, "train", (6, 5))[0])[0])
    assert load(root, "train[2:5]", 4)[1].examples == {"train[2:5]": 3}
    with pytest.raises(ValueError, match=r"holds no example. Received: split='train\[9:9\]'"):
        load(root, "train[9:9]")
    with pytest.raises(ValueError, match=r"must be a name or a slice.*split='train\[a\]'"):
        load(root, "train[a]")
    with pytest.raises(ValueError, match=r"no split 'trian'. The data has 'train'.*mean 'train'"):
        load(root, "trian")


def test_images_of_different_sizes_need_a_size_to_be_batched(tmp_path):
    root = builders.image_folder(tmp_path)
    with pytest.raises(ValueError, match=r"differ in shape.*Give `image_size`"):
        load(root)
    dataset, spec = load(root, batch_size=None)
    assert spec.input_shape == (None, None, 3)
    assert {image.shape[0] for image, _ in dataset} == {6, 7, 8, 9, 10}


def test_a_class_missing_from_a_split_is_named(tmp_path):
    builders.image_folder(tmp_path, splits=("train",))
    builders.image_folder(tmp_path, splits=("test",), classes=("cat",))
    with pytest.raises(ValueError, match="Split 'test' has no images of class 'dog'"):
        load(tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path):
    root = builders.image_folder(tmp_path, size=(6, 5))
    for name, content in (("cut.png", b""), ("page.jpg", b"<html>Not found</html>")):
        (root / "dog" / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"is no image.*dog/{name}.*Copy or download it anew"):
            load(root, image_size=4)
        (root / "dog" / name).unlink()


# Of one pixel: opaque, and transparent.
WEBP = base64.b64decode("UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA")
CLEAR_WEBP = base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA==")


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("a.jpg", lambda pixels: tf.io.encode_jpeg(pixels).numpy()),
        ("a.png", lambda pixels: tf.io.encode_png(pixels).numpy()),
        ("a.webp", lambda _: WEBP),
    ],
)
def test_an_image_that_was_cut_off_is_named(tmp_path, name, encode):
    rng = np.random.default_rng(0)
    whole = encode(rng.integers(0, 255, (20, 20, 3), "uint8"))
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / name).write_bytes(whole)
    (tmp_path / "dog" / name).write_bytes(whole + b"\0more")  # as some cameras write them
    assert len(read(load(tmp_path, image_size=4)[0])[1]) == 2
    (tmp_path / "dog" / name).write_bytes(whole[: len(whole) * 2 // 3])
    message = rf"An image cannot be decoded.*dog/{name}' of \d+ bytes. It may have been cut off: "
    with pytest.raises(ValueError, match=message):
        load(tmp_path, image_size=4)
    if name == "a.webp":
        (tmp_path / "dog" / name).write_bytes(CLEAR_WEBP)
        with pytest.raises(ValueError, match=r"Number of channels.*dog/a.webp.*transparent"):
            load(tmp_path, image_size=4)


def test_folders_without_images_or_with_both_layouts_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"There is no data in .*empty'.*class/image.jpg"):
        load(tmp_path / "empty")
    builders.image_folder(tmp_path / "both")
    builders.image_folder(tmp_path / "both", splits=("train",))
    with pytest.raises(ValueError, match="both as class/image and as split/class/image"):
        load(tmp_path / "both")
    with pytest.raises(ValueError, match="a folder of images has images and labels only"):
        load(builders.image_folder(tmp_path / "a"), supervised_keys=("image", "label"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ({"image_size": (1, 2, 3)}, ValueError, "one number, or height and width"),
        ({"image_size": 2.5}, TypeError, "`image_size` must be a whole number"),
        ({"split": None}, TypeError, "`split` must be a name or a list of names"),
        ({"split": []}, TypeError, "`split` must be a name or a list of names"),
        ({"cache": 3}, TypeError, "`cache` must be True, False, 'auto' or a path"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(tiny, options, error, message):
    with pytest.raises(error, match=message):
        load(tiny, **options)


def test_folders_need_no_tensorflow_datasets_and_names_say_which_extra(tmp_path):
    root = builders.image_folder(tmp_path, size=(6, 5))
    script = f"""
        import sys
        sys.modules["tensorflow_datasets"] = None  # As if it were not installed.
        from keras_transfer.data import load
        assert load({os.fspath(root)!r}, image_size=4)[1].num_classes == 2
        try:
            load("mnist")
        except ImportError as error:
            assert "keras-transfer[datasets]" in str(error), error
        else:
            raise AssertionError("no error")
    """
    run_code(script)
