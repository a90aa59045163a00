"""Callbacks see one training: that of plain Keras, hook by hook.

A cached training is compared with that of `keras.Model.fit`, which knows of neither segments
nor features.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as ktf
from tests.features.toys import LONG_PLAN, PLAN, dense_model, fit, inputs

HOOKS = [
    f"on_{what}_{when}"
    for what in ("train", "epoch", "train_batch", "test", "test_batch", "predict", "predict_batch")
    for when in ("begin", "end")
]
VALIDATION = inputs(10, seed=3)
WAYS = ("cached", "Keras")


class Recorder(keras.callbacks.Callback):
    """Writes down every hook with its arguments, and what it could see of the model."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def take_down(self, hook, *arguments):
        *index, logs = arguments
        logs = None if logs is None else {k: str(np.asarray(v)) for k, v in logs.items()}
        self.seen.append((hook, *index, logs, self.model.stop_training))

    @property
    def hooks(self):
        return [hook for hook, *_ in self.seen]


for name in HOOKS:
    if "batch" in name or "epoch" in name:

        def hook(self, index, logs=None, name=name):
            self.take_down(name, index, logs)

    else:

        def hook(self, logs=None, name=name):
            self.take_down(name, logs)

    setattr(Recorder, name, hook)


def arrays():
    return tf.data.Dataset.from_tensor_slices(inputs()).batch(8)


def run(way, build=dense_model, callbacks=(), plan=PLAN, **arguments):
    """Trains in one of three ways, with the same random numbers."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    model = build()
    recorder = Recorder()
    callbacks = [*callbacks, recorder]
    arguments = {"validation_data": VALIDATION, "batch_size": None, **arguments}
    if way == "Keras":
        if plan is not None:
            callbacks.insert(0, ktf.callbacks.GradualUnfreezing(plan, verbose=0))
            arguments.setdefault("epochs", plan.total_epochs)
        keras.Model.fit(model, arrays(), callbacks=callbacks, shuffle=False, verbose=0, **arguments)
        return model, recorder
    made = fit(
        model, arrays(), plan=plan, callbacks=callbacks, cache_features=way == "cached", **arguments
    )
    assert bool(made.passes) == (way == "cached")
    return model, recorder


def assert_one_training(make_callbacks=lambda: [], ways=WAYS, **arguments):
    """Trains in all ways; returns what each of them left behind."""
    given = {way: make_callbacks() for way in ways}
    made = {way: run(way, callbacks=given[way], **arguments) for way in ways}
    seen = made["cached"][1].seen
    for way in ways[1:]:
        assert made[way][1].seen == seen, way
        for a, b in zip(made["cached"][0].get_weights(), made[way][0].get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert made[way][0].stop_training == made["cached"][0].stop_training
    return made, given


def test_hooks_come_as_in_keras():
    made, _ = assert_one_training(ways=("cached", "uncached", "Keras"), plan=LONG_PLAN)
    hooks = made["cached"][1].hooks
    assert [hooks.count(h) for h in HOOKS] == [1, 1, 5, 5, 15, 15, 5, 5, 5, 5, 0, 0, 0, 0]
    assert (hooks[0], hooks[-1]) == ("on_train_begin", "on_train_end")
    epochs = [event[1] for event in made["cached"][1].seen if event[0] == "on_epoch_begin"]
    assert epochs == [0, 1, 2, 3, 4]
    # The control: logs do tell trainings apart.
    _, other = run("cached", lambda: dense_model(optimizer="adam"), plan=LONG_PLAN)
    assert other.hooks == hooks
    assert other.seen != made["cached"][1].seen


def test_stock_callbacks_write_what_they_write_without_a_cache(tmp_path):
    folders = iter(WAYS)

    def callbacks():
        folder = tmp_path / next(folders)
        folder.mkdir()
        lines = []
        log = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: lines.append((epoch, logs["loss"]))
        )
        log.lines = lines
        return [
            keras.callbacks.ModelCheckpoint(
                str(folder / "{epoch}.weights.h5"), save_weights_only=True
            ),
            keras.callbacks.ModelCheckpoint(
                str(folder / "best.keras"), monitor="loss", save_best_only=True
            ),
            keras.callbacks.CSVLogger(str(folder / "log.csv")),
            keras.callbacks.TensorBoard(str(folder / "board"), update_freq="batch"),
            log,
        ]

    _, given = assert_one_training(callbacks)
    assert given["cached"][-1].lines == given["Keras"][-1].lines
    assert [epoch for epoch, _ in given["cached"][-1].lines] == [0, 1, 2, 3]
    left = {way: what_is_in(tmp_path / way) for way in WAYS}
    assert sorted(left["cached"]) == sorted(left["Keras"])
    assert {"1.weights.h5", "4.weights.h5", "best.keras", "log.csv"} <= set(left["cached"])
    for name in left["cached"]:
        assert left["cached"][name] == left["Keras"][name], name
    assert len(left["cached"]["train"]) > 10


def what_is_in(folder):
    """Contents of files, as far as they do not hold the time of day."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".h5":
            model = dense_model()
            model.load_weights(path)
            found[path.name] = [w.tolist() for w in model.get_weights()]
        elif path.suffix == ".keras":
            model = keras.models.load_model(path)
            found[path.name] = [w.tolist() for w in model.get_weights()]
        elif path.suffix == ".csv":
            found[path.name] = path.read_text()
        elif "tfevents" in path.name:
            found[path.parent.name] = scalars(path)
    return found


def scalars(path):
    found = []
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            number = tf.make_ndarray(value.tensor)
            if value.tag != "keras" and "per_sec" not in value.tag and number.size == 1:
                found.append((event.step, value.tag, str(number)))
    return found


@pytest.mark.usually("1")
@pytest.mark.filterwarnings("ignore:`EarlyStopping` ends the whole training:UserWarning")
@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_stops_the_whole_training(patience):
    made, given = assert_one_training(
        lambda: [
            keras.callbacks.EarlyStopping(
                "loss", patience=patience, min_delta=100, restore_best_weights=True
            )
        ]
    )
    # After epoch 2, where a segment ends too; and after epoch 3.
    assert given["cached"][0].stopped_epoch == patience
    assert made["cached"][1].hooks.count("on_epoch_end") == patience + 1
    assert made["cached"][0].stop_training


class StopAt(keras.callbacks.Callback):
    """Sets `stop_training` in one hook, the n-th time that it is called."""

    def __init__(self, hook, call):
        super().__init__()
        self.calls = 0

        def stop(*arguments, **named):
            self.calls += 1
            if self.calls == call:
                self.model.stop_training = True

        setattr(self, hook, stop)


@pytest.mark.usually("on_epoch_end-2")
@pytest.mark.parametrize(
    ("hook", "call"),
    [
        ("on_train_begin", 1),
        ("on_epoch_begin", 3),
        ("on_train_batch_end", 5),
        ("on_epoch_end", 2),
        ("on_test_end", 3),
    ],
)
def test_stop_training_means_what_it_means_to_keras(hook, call):
    made, _ = assert_one_training(lambda: [StopAt(hook, call)])
    assert made["cached"][1].hooks.count("on_epoch_end") < 4
    assert made["cached"][1].hooks[-1] == "on_train_end"


# --- Where a training begins ------------------------------------------------------------------


@pytest.mark.usually("2")
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_training_may_begin_at_a_later_epoch(epoch):
    made, _ = assert_one_training(initial_epoch=epoch)
    begun = [event[1] for event in made["cached"][1].seen if event[0] == "on_epoch_begin"]
    assert begun == list(range(epoch, 4))


class KilledError(Exception):
    """Stands for a process that ends in the middle of an epoch."""


class KillAt(keras.callbacks.Callback):
    def __init__(self, epoch, batch=1):
        super().__init__()
        self.epoch, self.batch = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            raise KilledError


def killed_and_resumed(way, folder, epoch, plan=PLAN):
    def adam():
        return dense_model(optimizer="adam")

    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    with pytest.raises(KilledError):
        run(way, adam, [backup, KillAt(epoch)], plan)
    return run(way, adam, [keras.callbacks.BackupAndRestore(folder)], plan)


@pytest.mark.usually("1")
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_resumed_training_is_the_one_that_was_never_killed(tmp_path, epoch):
    whole, recorder = run("cached", lambda: dense_model(optimizer="adam"))
    model, resumed = killed_and_resumed("cached", tmp_path, epoch)
    at = recorder.seen.index(("on_epoch_begin", epoch, {}, False))
    assert resumed.seen[1:] == recorder.seen[at:]
    for a, b in zip(whole.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.exhaustive
def test_a_fit_after_a_resumed_one_begins_at_its_own_epoch(tmp_path):
    model, _ = killed_and_resumed("cached", tmp_path, 2)
    recorder = Recorder()
    fit(model, arrays(), epochs=2, callbacks=[recorder])
    begun = [event[1] for event in recorder.seen if event[0] == "on_epoch_begin"]
    assert begun == [0, 1]


# --- Stages that end on a plateau -------------------------------------------------------------


@pytest.mark.exhaustive
def test_stages_that_end_on_a_plateau():
    patient = {"monitor": "val_loss", "patience": 1, "min_delta": 100}
    plan = ktf.UnfreezingPlan(
        [
            ktf.Stage("probe", depth=1, epochs=5, peak_lr=1e-1, **patient),
            ktf.Stage("top", depth=2, epochs=5, peak_lr=3e-2, **patient),
            ktf.Stage("all", depth="all", epochs=1),
        ]
    )
    made, _ = assert_one_training(plan=plan)
    ends = [event[2] for event in made["cached"][1].seen if event[0] == "on_epoch_end"]
    assert [logs["stage"] for logs in ends] == ["0", "0", "1", "1", "2"]


# --- Callbacks that use the model -------------------------------------------------------------


class Uses(keras.callbacks.Callback):
    """Predicts, evaluates and calls the model on raw data, in the middle of everything."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_epoch_end(self, epoch, logs=None):
        x, y = VALIDATION
        self.found.append(self.model.predict(x, verbose=0).tolist())
        self.found.append(self.model.evaluate(x, y, verbose=0, return_dict=True))
        self.found.append(self.model.evaluate(arrays(), verbose=0, return_dict=True))

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.found.append(self.model(VALIDATION[0]).numpy().tolist())


@pytest.mark.exhaustive
def test_a_callback_may_use_the_model_on_raw_data():
    made, given = assert_one_training(lambda: [Uses()])
    assert given["cached"][0].found == given["Keras"][0].found
    assert len(given["cached"][0].found) == 4 * 4
    assert made["cached"][1].hooks.count("on_predict_begin") == 0, "those have their own callbacks"


def test_a_callback_list_of_the_users_own():
    lists = []

    def ready():
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = dense_model()
        recorder = Recorder()
        unfreezing = ktf.callbacks.GradualUnfreezing(PLAN, verbose=0)
        lists.append(
            keras.callbacks.CallbackList(
                [unfreezing, recorder], add_history=True, model=model, epochs=4, steps=3, verbose=0
            )
        )
        return model, recorder

    model, recorder = ready()
    model.fit(arrays(), callbacks=lists[0], shuffle=False, verbose=0, cache_features=True)
    _, other = run("cached", validation_data=None)
    assert recorder.seen == other.seen


class Saves(keras.callbacks.Callback):
    """Saves and exports the model in the middle of a cached training."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            self.model.save(self.folder / "now.keras")
            self.model.export(self.folder / "exported", verbose=False)
            self.predicted = self.model.predict(VALIDATION[0], verbose=0)


@pytest.mark.exhaustive
def test_a_model_saved_in_the_middle_carries_no_trace(tmp_path):
    saves = Saves(tmp_path)
    model, _ = run("cached", callbacks=[saves])
    (tmp_path / "plain").mkdir()
    plain, _ = run("Keras", callbacks=[Saves(tmp_path / "plain")])
    assert sorted(vars(model)) == sorted(vars(plain))
    assert sorted(vars(model.head)) == sorted(vars(plain.head))
    assert sorted(vars(model.backbone)) == sorted(vars(plain.backbone))
    loaded = keras.models.load_model(tmp_path / "now.keras")
    np.testing.assert_array_equal(loaded.predict(VALIDATION[0], verbose=0), saves.predicted)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(VALIDATION[0]), saves.predicted, rtol=1e-6)
    other = keras.models.load_model(tmp_path / "plain/now.keras")
    paths = [v.path for v in loaded.variables]
    assert paths == [v.path for v in other.variables]
    assert not any("features" in path for path in paths)
    optimizers = [m.optimizer.variables for m in (loaded, other)]
    assert [v.path for v in optimizers[0]] == [v.path for v in optimizers[1]]
    signature = exported.signatures["serving_default"].structured_input_signature[1]
    assert [spec.shape.as_list() for spec in signature.values()] == [[None, 6]]
    # And after the training.
    model.save(tmp_path / "after.keras")
    after = keras.models.load_model(tmp_path / "after.keras")
    x = VALIDATION[0]
    np.testing.assert_array_equal(after.predict(x, verbose=0), model.predict(x, verbose=0))


# --- Several trainings ------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_two_fits_in_a_row():
    def twice(way):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = dense_model(optimizer="adam")
        model.freeze()
        recorder = Recorder()
        for epochs in (2, 3):
            options = {"callbacks": [recorder], "cache_features": way == "cached"}
            made = fit(model, *inputs(), epochs=epochs, **options)
            assert made.passes == (["training"] if way == "cached" else [])
            assert len(made.history["loss"]) == epochs
        return recorder.seen, model.get_weights()

    (seen, weights), (other, other_weights) = twice("cached"), twice("uncached")
    assert seen == other
    for a, b in zip(weights, other_weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.exhaustive
def test_a_training_that_fails_leaves_a_model_that_can_train():
    model = dense_model()
    with pytest.raises(KilledError):
        fit(model, arrays(), plan=PLAN, callbacks=[KillAt(2)])
    made = fit(model, arrays(), plan=PLAN)
    assert made.passes == ["training"]
    assert len(made.history["loss"]) == 4


class Thaws(keras.callbacks.Callback):
    """Unfreezes by hand."""

    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self.thaw)

    def thaw(self, epoch, logs=None):
        if epoch == 1:
            self.model.unfreeze()
            self.model.optimizer.build(self.model.trainable_variables)
            self.model.make_train_function(force=True)


@pytest.mark.usually("on_epoch_begin")
@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_epoch_end"])
def test_a_callback_that_unfreezes_by_hand_is_an_error_rather_than_without_effect(hook):
    def build():
        model = dense_model()
        model.freeze()
        return model

    options = {"build": build, "plan": None, "epochs": 4}
    message = "A callback has let 'stem' train while features behind it are cached. Put the change"
    with pytest.raises(RuntimeError, match=message):
        run("cached", callbacks=[Thaws(hook)], **options)
    model, _ = run("uncached", callbacks=[Thaws(hook)], **options)
    assert not np.array_equal(model.get_weights()[0], build().get_weights()[0])
