import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

import tensorflow_datasets as tfds

import keras_transfer as ktf
from examples.datasets import (
    animal_silhouettes,
    digits_8x8,
    mnist_5k,
    rated_sentences,
    spoken_words,
    synthetic_voices,
)
from examples.datasets.builders.animal_silhouettes import AnimalSilhouettes
from examples.datasets.builders.digits_8x8 import Digits8x8
from examples.datasets.builders.mnist_5k import Mnist5k
from examples.datasets.builders.rated_sentences import RatedSentences
from examples.datasets.builders.spoken_words import SpokenWords, SyntheticVoices

ARCHIVE = rated_sentences.FOLDER / rated_sentences.SDIST


def read(builder, data_dir):
    """Both splits as arrays, by the package's own door, and the facts."""
    splits, spec = ktf.data.load(builder, ["train", "test"], batch_size=None, data_dir=data_dir)
    batches = [zip(*split.batch(500).as_numpy_iterator(), strict=True) for split in splits]
    return [tuple(map(np.concatenate, parts)) for parts in batches], spec


def as_set(images):
    return {image.astype(np.uint8).tobytes() for image in images}


@pytest.mark.usually("Mnist5k-load-sizes1", "Digits8x8-load-sizes2")
@pytest.mark.parametrize(
    ("builder", "load", "sizes"),
    [
        (AnimalSilhouettes, animal_silhouettes.load_unique, (8716, 1000)),
        (Mnist5k, mnist_5k.load, (4500, 500)),
        (Digits8x8, digits_8x8.load, (797, 1000)),
    ],
)
def test_splits_are_disjoint_balanced_and_hold_all_images_under_their_labels(
    builder, load, sizes, data_dir
):
    images, labels = load()
    ((train, train_labels), (test, test_labels)), spec = read(builder, data_dir)
    assert (len(train), len(test)) == sizes
    assert spec.input_shape == (*images.shape[1:], 1)
    assert spec.loss == "sparse_categorical_crossentropy"
    assert set(np.bincount(test_labels)) == {len(test) // 10}
    assert not as_set(train) & as_set(test)
    wanted = sorted((im.tobytes(), int(label)) for im, label in zip(images, labels, strict=True))
    got = [
        (im.astype(np.uint8).tobytes(), int(label))
        for part, of in ((train, train_labels), (test, test_labels))
        for im, label in zip(part, of, strict=True)
    ]
    assert sorted(got) == wanted


def test_a_prepared_set_is_found_by_name_and_classes_have_their_names(data_dir):
    AnimalSilhouettes(data_dir=data_dir).download_and_prepare()
    _, spec = ktf.data.load(
        "animal_silhouettes", "test", image_size=32, data_dir=data_dir, download=False
    )
    assert spec.class_names == animal_silhouettes.CLASS_NAMES
    assert spec.input_shape == (32, 32, 1)


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="the sentences are not here: see the Makefile")
def test_sentences_are_read_as_they_were_rated_and_none_twice(data_dir):
    builder = RatedSentences(config="tweets", data_dir=data_dir)
    splits, spec = ktf.data.load(builder, ["train", "test"], batch_size=None)
    assert spec.class_names == ("negative", "positive")
    assert spec.examples == {"train": 3196, "test": 1000}
    train, test = (
        {
            text.decode(): int(label)
            for batch in split.batch(500).as_numpy_iterator()
            for text, label in zip(*batch, strict=True)
        }
        for split in splits
    )
    assert not set(train) & set(test)
    assert sum(test.values()) == 500
    assert {**train, **test}["Yay. Another good phone interview."] == 1
    rating, _ = ktf.data.load(builder, "test", batch_size=None, supervised_keys=("text", "rating"))
    assert all((float(r) > 0) == test[text.decode()] for text, r in rating.as_numpy_iterator())


def test_a_missing_or_other_archive_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"pip download --no-deps --no-binary :all: vader"):
        rated_sentences.load("tweets", tmp_path / rated_sentences.SDIST)
    (tmp_path / rated_sentences.SDIST).write_bytes(b"another")
    with pytest.raises(ValueError, match=r"is not the file that this example was written for"):
        rated_sentences.load("tweets", tmp_path / rated_sentences.SDIST)
    monkeypatch.setattr(rated_sentences, "FOLDER", tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match=r"(?s)pip download.*put it into the manual directory"):
        ktf.data.load(RatedSentences(config="movies", data_dir=tmp_path / "data"))


@pytest.fixture
def recordings(tmp_path):
    """Four short recordings of each series at 44.1 kHz in stereo, one of them twice."""
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("scipy")
    folder = tmp_path / "downloads" / "manual" / "stamps"
    (folder / "animals").mkdir(parents=True)
    time = np.arange(22_050) / 44_100
    for label, series in enumerate(spoken_words.SERIES):
        for number in range(4):
            # Half a second of a tone after a tenth of a second of silence.
            tone = 0.5 * np.sin(2 * np.pi * (300 + 40 * label + number) * time)
            sound = np.concatenate([np.zeros(4410), tone])
            file = folder / "animals" / f"{number}_desc_{series}.ogg"
            soundfile.write(file, np.stack([sound, sound], axis=1), 44_100)
        (folder / f"copy_desc_{series}.ogg").write_bytes(file.read_bytes())
    return folder


def test_recordings_become_clips_from_where_sound_begins(recordings, tmp_path, monkeypatch):
    found = spoken_words.recordings(recordings)
    assert {series: len(files) for series, files in found.items()} == dict.fromkeys(
        spoken_words.SERIES, 4
    )
    clip = spoken_words.load_clip(found["be"][0])
    assert (clip.shape, clip.dtype) == ((25_600,), np.int16)
    # Its pitch survives the change of rate; the silence before it is gone.
    strongest = np.abs(np.fft.rfft(clip[:8000])).argmax() * 2
    assert 296 <= strongest <= 308
    assert np.abs(clip[:160]).max() > 5000
    assert not clip[9000:].any()
    monkeypatch.setattr(spoken_words, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.setattr(SpokenWords, "_COUNTS", (2, 1))
    ((_, train), (sounds, test)), spec = read(SpokenWords, tmp_path)
    assert spec.class_names == spoken_words.SERIES
    assert np.bincount(train).tolist() == [2] * 9
    assert np.bincount(test).tolist() == [1] * 9
    assert sounds.shape == (9, 25_600)


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(spoken_words, "INSTALLED", tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match=r"(?s)apt-get install tuxpaint-stamps-default"):
        ktf.data.load(SpokenWords, data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="There are no recordings of the series be, bg"):
        spoken_words.recordings(tmp_path)


@pytest.mark.exhaustive
def test_synthetic_voices_are_the_same_each_time_and_told_apart(data_dir):
    first, again = (synthetic_voices.synthetic_clip(3, 7) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != synthetic_voices.synthetic_clip(3, 8)).any()
    ((_, train), (_, test)), spec = read(SyntheticVoices, data_dir)
    assert spec.num_classes == 9
    assert np.bincount(train).tolist() == np.bincount(test).tolist() == [10] * 9


def test_builders_are_those_of_tensorflow_datasets():
    builders = [AnimalSilhouettes, Mnist5k, Digits8x8, RatedSentences, SpokenWords]
    assert all(issubclass(b, tfds.core.GeneratorBasedBuilder) for b in builders)
