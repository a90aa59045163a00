"""What `TransferModel.fit` checks before any work starts."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from keras_transfer.plan import CarriesPlan, UnfreezingPlan


def require_compiled(model: keras.Model) -> None:
    """Checks that `compile` was called."""
    if not model.compiled:
        raise ValueError(
            f"{model.name!r} is not compiled. Call `model.compile(optimizer=..., loss=...)` "
            "before `fit`."
        )


def as_list(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Returns `fit`'s callbacks as a flat list."""
    if callbacks is None:
        return []
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return list(keras.tree.flatten(callbacks))


def plan_carrier(callbacks: Any) -> CarriesPlan | None:
    """Returns the one callback that carries a plan, if there is one."""
    if any(isinstance(c, UnfreezingPlan) for c in as_list(callbacks)):
        raise TypeError(
            "`callbacks` holds an `UnfreezingPlan`, which is no callback. Wrap it: "
            "callbacks=[keras_transfer.callbacks.GradualUnfreezing(plan)]."
        )
    carriers = [c for c in as_list(callbacks) if isinstance(c, CarriesPlan)]
    if len(carriers) > 1:
        names = ", ".join(type(c).__name__ for c in carriers)
        raise ValueError(
            f"{len(carriers)} callbacks carry a plan ({names}), and each would freeze what the "
            "other trains. Put all stages into one plan."
        )
    return carriers[0] if carriers else None


def check_callbacks(callbacks: Any, carrier: CarriesPlan | None) -> None:
    """Checks the callbacks against the plan that one of them carries."""
    if carrier is None:
        return
    for callback in as_list(callbacks):
        if isinstance(callback, keras.callbacks.BackupAndRestore) and carrier.plan.ends_on_plateau:
            raise ValueError(
                "`BackupAndRestore` does not keep when a stage began, and this plan has stages "
                "that end on a plateau: a resumed run would be in another stage. Use "
                "`keras_transfer.callbacks.ResumableTraining`, or stages of fixed length."
            )
        if isinstance(callback, keras.callbacks.EarlyStopping) and len(carrier.plan.stages) > 1:
            warnings.warn(
                "`EarlyStopping` ends the whole training where a stage stops improving, also at "
                "the bump that unfreezing makes, and later stages never run. To end a stage, "
                "write Stage(patience=...) and leave `EarlyStopping` out.",
                stacklevel=3,
            )


def first_batch(data: Any) -> Any:
    """Returns the first batch of data, or `None` where looking would use it up.

    A `tf.data.Dataset` is opened and read once; a generator cannot be.
    """
    if isinstance(data, tf.data.Dataset):
        return next(iter(data.take(1)), None)
    if isinstance(data, keras.utils.PyDataset):
        return data[0]
    return None


def symbolic_inputs(data: Any) -> Any:
    """Returns the inputs that data holds as symbolic tensors without a batch size.

    Args:
        data: `fit`'s `x`. Arrays are inputs as they stand.

    Returns:
        The tensors, or `None` where looking would use data up.
    """
    if isinstance(data, tf.data.Dataset | keras.utils.PyDataset):
        batch = first_batch(data)
        inputs = batch[0] if isinstance(batch, tuple) else batch
    else:
        inputs = data
    arrays = keras.tree.flatten(inputs)
    if not arrays or not all(hasattr(a, "shape") and hasattr(a, "dtype") for a in arrays):
        return None
    return keras.tree.map_structure(
        lambda t: keras.KerasTensor((None, *t.shape[1:]), keras.backend.standardize_dtype(t.dtype)),
        inputs,
    )
