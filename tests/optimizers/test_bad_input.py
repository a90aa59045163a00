"""What an optimizer refuses, and with which words, before anything trains."""

import math

import keras
import numpy as np
import pytest

from keras_transfer.optimizers import DiscriminativeOptimizer, discriminative
from tests.optimizers import toys

KO = keras.optimizers


class OwnApply(KO.SGD):
    def apply(self, grads, trainable_variables=None):
        return super().apply(grads, trainable_variables)


class LostSlots(KO.SGD):
    def build(self, variables):
        super().build(variables)
        self.slots = {v.path: self.add_variable_from_reference(v, name="slot") for v in variables}


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        ("adamv", ValueError, r"name of a Keras optimizer.*'adamv'\. Did you mean 'adam.*'"),
        (3, TypeError, "name of a Keras optimizer or an instance of one. Received: optimizer=3"),
        (None, TypeError, "Received: optimizer=None"),
        (KO.Adam, TypeError, "an instance of one"),
        (OwnApply(), ValueError, "`OwnApply` .* replaces `Optimizer.apply`"),
        (KO.SGD(-0.1), ValueError, "`learning_rate` must be finite and at least 0.*-0.1"),
        (KO.SGD(math.nan), ValueError, "`learning_rate` must be finite.* Received: .*nan"),
        (KO.SGD(math.inf), ValueError, "`learning_rate` must be finite"),
    ],
    ids=range(8),
)
def test_optimizers_that_cannot_work_are_refused_by_name(optimizer, error, message):
    with pytest.raises(error, match=message):
        discriminative(optimizer)
    with pytest.raises(error, match=message):
        DiscriminativeOptimizer(optimizer)


def test_state_that_cannot_be_told_by_variable_is_refused():
    optimizer = discriminative(LostSlots())
    with pytest.raises(ValueError, match="`LostSlots` keeps state that cannot be told by variable"):
        optimizer.build([keras.Variable(np.ones(2), name="v")])


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        ({"body": -0.1}, r"`multipliers\['body'\]` must be finite and at least 0"),
        ({"body": math.nan}, r"`multipliers\['body'\]` must be finite"),
        ({"bdy": 0.1}, "No layer group matches 'bdy'. Did you mean 'body'"),
        ({"body": 0.1, "b.*": 0.2}, "both match the layer group 'body'"),
        ({"(": 0.1}, "not a valid regular expression"),
    ],
)
def test_bad_multipliers_are_refused_and_change_nothing(multipliers, message):
    optimizer = discriminative("adam")
    optimizer.set_groups(toys.group_variables(toys.make_model()))
    optimizer.set_multipliers({"stem": 0.5})
    with pytest.raises(ValueError, match=message):
        optimizer.set_multipliers({"head": 0.1, **multipliers})
    assert optimizer.multipliers == {"stem": 0.5, "body": 1.0, "head": 1.0}


def test_multipliers_may_be_patterns():
    optimizer = discriminative("adam")
    optimizer.set_groups(toys.group_variables(toys.make_model()))
    optimizer.set_multipliers({"(stem|body)": 0.25, "head": 0.5})
    assert optimizer.multipliers == {"stem": 0.25, "body": 0.25, "head": 0.5}


def test_a_variable_belongs_to_one_group_and_only_known_ones_train():
    model = toys.make_model()
    groups = toys.group_variables(model)
    optimizer = discriminative("adam")
    with pytest.raises(ValueError, match="at least one layer group"):
        optimizer.set_groups({})
    with pytest.raises(ValueError, match="in two layer groups, 'body' and 'again'"):
        optimizer.set_groups({**groups, "again": groups["body"]})
    optimizer.set_groups({"stem": groups["stem"], "head": groups["head"]})
    with pytest.raises(ValueError, match="body/kernel' is in no layer group"):
        optimizer.build(model.trainable_variables)


def test_a_file_of_another_optimizer_or_another_model_is_refused():
    groups = toys.group_variables(toys.make_model())
    adam = discriminative("adam")
    adam.set_groups(groups)
    adam.build(groups["head"])
    toys.run(adam, groups["head"], 1)
    store = toys.save(adam)
    sgd = discriminative("sgd")
    sgd.set_groups(groups)
    with pytest.raises(ValueError, match="is of 'Adam', but the model was compiled with 'SGD'"):
        sgd.load_own_variables(store)
    other = discriminative("adam")
    other.set_groups({"top": [keras.Variable(np.ones(2), name="v")]})
    with pytest.raises(ValueError, match=r"in no layer group: .* belongs to another model"):
        other.load_own_variables(store)
