from __future__ import annotations

import numpy as np
import pytest

from examples.datasets import animal_silhouettes, digits_8x8, mnist_5k
from examples.datasets._split import stratified_split


def as_set(images):
    return {image.tobytes() for image in images}


def test_silhouettes_hold_no_image_twice():
    images, labels = animal_silhouettes.load_unique()
    assert images.shape == (9716, 28, 28)
    assert images.dtype == np.uint8
    assert len(as_set(images)) == len(images) == len(labels)
    assert np.bincount(labels).tolist() == [937, 812, 992, 996, 997, 1000, 1000, 997, 985, 1000]
    assert len(animal_silhouettes.CLASS_NAMES) == 10


def test_silhouette_sets_are_disjoint_balanced_and_the_same_for_the_same_seed():
    sizes = {"train_size": 50, "validation_size": 30, "test_size": 40, "image_size": 32}
    sets = animal_silhouettes.load(**sizes, seed=3)
    assert [len(examples) for examples in sets] == [50, 30, 40]
    for examples in sets:
        assert set(np.bincount(examples.labels)) == {len(examples) // 10}
        assert examples.images.shape[1:] == (32, 32, 3)
        assert examples.images.dtype == np.float32
        assert 100 < examples.images.max() <= 255
        assert examples.images.min() == 0
    train, validation, test = (as_set(examples.images) for examples in sets)
    assert not train & validation
    assert not train & test
    assert not validation & test
    again = animal_silhouettes.load(**sizes, seed=3)
    for one, other in zip(sets, again, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert as_set(animal_silhouettes.load(**sizes, seed=4)[2].images) != test


def test_the_test_set_does_not_depend_on_the_number_of_training_images():
    few = animal_silhouettes.load(20, 20, test_size=40, image_size=28, seed=1)
    many = animal_silhouettes.load(300, 100, test_size=40, image_size=28, seed=1)
    np.testing.assert_array_equal(few[2].images, many[2].images)


def test_a_split_keeps_classes_equal_as_far_as_sizes_allow():
    labels = np.repeat(np.arange(4), 25)
    first, second = stratified_split(labels, (10, 7), seed=0)
    assert not set(first) & set(second)
    assert sorted(np.bincount(labels[first])) == [2, 2, 3, 3]
    assert sorted(np.bincount(labels[second])) == [1, 2, 2, 2]


def test_more_examples_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"Class 0 has only 937 examples.*sizes=\(1000, 9000, 0\)"):
        animal_silhouettes.load(9000, 0)
    with pytest.raises(ValueError, match=r"must not be negative. Received: sizes=\(-1,\)"):
        stratified_split(np.zeros(3, int), (-1,), seed=0)


def test_mnist_is_complete_and_no_longer_sorted():
    images, labels = mnist_5k.load(seed=0)
    assert images.shape == (5000, 28, 28)
    assert images.max() == 255
    assert np.bincount(labels).tolist() == [500] * 10
    # Sorted by class, each tenth of the set would hold one digit only.
    assert all(len(set(tenth)) == 10 for tenth in labels.reshape(10, 500))
    np.testing.assert_array_equal(mnist_5k.load(seed=0)[1], labels)
    assert (mnist_5k.load(seed=1)[1] != labels).any()


def test_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    expected = datasets.load_digits()
    images, labels = digits_8x8.load()
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(labels, expected.target)
