import pytest

from keras_transfer.data import TaskSpec


def test_json_goes_both_ways():
    spec = TaskSpec("a", [None, 3], num_classes=2, class_names=["x", "y"], examples={"train": 5})
    assert TaskSpec.from_json(spec.to_json()) == spec
    assert spec.input_shape == (None, 3)


def test_names_and_count_must_agree():
    with pytest.raises(ValueError, match="num_classes=3, 2 names"):
        TaskSpec("a", (3,), num_classes=3, class_names=("x", "y"))


def test_damaged_json_is_refused():
    with pytest.raises(ValueError, match="The task is not valid JSON"):
        TaskSpec.from_json("{")
    with pytest.raises(ValueError, match="must hold `name`"):
        TaskSpec.from_config({})
