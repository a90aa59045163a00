"""Canaries of the private methods that a discriminative optimizer overrides or inherits."""

import keras
import numpy as np

KO = keras.optimizers


def built(cls, **options):
    optimizer = cls(learning_rate=0.5, **options)
    variable = keras.Variable(np.ones(3, "float32"), name="v")
    optimizer.build([variable])
    return optimizer, variable


def test_backend_apply_gradients_is_all_that_apply_does_to_variables():
    class Own(KO.SGD):
        def _backend_apply_gradients(self, grads, trainable_variables):
            self.seen = (grads, trainable_variables)

    optimizer, variable = built(Own, clipvalue=0.1, use_ema=True, weight_decay=0.1)
    gradient = keras.ops.ones(3)
    optimizer.apply([gradient], [variable])
    grads, variables = optimizer.seen
    # Not clipped, not decayed, not moved: all of that is left to the override.
    np.testing.assert_array_equal(grads[0], np.ones(3))
    assert variables[0] is variable
    np.testing.assert_array_equal(variable.numpy(), np.ones(3))
    assert int(optimizer.iterations.numpy()) == 1


def test_clip_gradients_applies_whichever_clipping_was_asked_for():
    for options, wanted in (
        ({"clipvalue": 0.1}, 0.1),
        ({"clipnorm": 1.0}, 3**-0.5),
        ({"global_clipnorm": 1.0}, 3**-0.5),
        ({}, 1.0),
    ):
        optimizer, _ = built(KO.SGD, **options)
        (clipped,) = optimizer._clip_gradients([keras.ops.ones(3)])
        np.testing.assert_allclose(clipped, np.full(3, wanted), rtol=1e-6)


def test_the_end_of_fit_overwrites_variables_through_the_overridden_method():
    class Own(KO.SGD):
        def _overwrite_model_variables_with_average_value(self, trainable_variables):
            self.seen = list(trainable_variables)

    optimizer, variable = built(Own, use_ema=True)
    optimizer.finalize_variable_values([variable])
    assert optimizer.seen[0] is variable
