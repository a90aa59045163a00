"""Any history of fits, files, crashes and copies, against what a few lines of Python say.

A model of plain Python keeps what must be frozen, what trained, and how many updates each group
had. `hypothesis` looks for a history in which the real one differs. A few histories run here,
eagerly (tracing takes seconds for each stage); `pytest -m exhaustive` tries hundreds, in graphs.
"""

import pathlib
import tempfile

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import keras_transfer as ktf

LAYERS = ("stem", "mid", "top", "head")
# How the layers may be grouped, and what the groups are called then.
GROUPINGS = {
    "blocks": LAYERS,
    2: ("stem", "mid", "head"),
    ("stem", "top"): ("stem", "top", "head"),
}
STEPS = 2
X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(8, 2)).astype("float32")

stages = st.one_of(
    st.builds(lambda n: {"depth": n}, st.integers(1, 4)),
    st.builds(
        lambda numbers: {"groups": sorted(numbers)},
        st.sets(st.integers(0, 3), min_size=1, max_size=3),
    ),
)


class CrashError(Exception):
    pass


class CrashAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.at = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.at:
            raise CrashError


def make_model(eagerly, groups):
    layers = [keras.layers.Dense(3, "tanh", name=name) for name in LAYERS[:-1]]
    layers.insert(2, keras.layers.Dropout(0.2, seed=3, name="noise"))
    body = keras.Sequential([keras.Input((3,)), *layers], name="body")
    model = ktf.TransferModel(
        body,
        ktf.layers.RegressionHead(2, pooling=None, name="head"),
        groups=list(groups) if isinstance(groups, tuple) else groups,
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=eagerly)
    return model


def weights_of(model):
    return {group.name: [np.array(v) for v in group.variables] for group in model.layer_groups}


class Histories(RuleBasedStateMachine):
    """What may be done to a model, and what has to hold after each."""

    count = 0
    eagerly = True

    @initialize(groups=st.sampled_from(list(GROUPINGS)))
    def begin(self, groups):
        type(self).count += 1
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.groups, self.names = groups, GROUPINGS[groups]
        self.model = make_model(self.eagerly, groups)
        self.updates = dict.fromkeys(self.names, 0)
        self.trains = set(self.names)

    def plan_of(self, stages):
        """Returns drawn stages as a plan for this model's groups, and what each of them trains."""
        made, trains = [], []
        for number, stage in enumerate(stages):
            if "depth" in stage:
                depth = min(stage["depth"], len(self.names))
                names, what = self.names[-depth:], {"depth": depth}
            else:
                names = sorted({self.names[n % len(self.names)] for n in stage["groups"]})
                what = {"train": names}
            made.append(ktf.Stage(str(number), epochs=1, **what))
            trains.append(set(names))
        return ktf.UnfreezingPlan(made), trains

    def run(self, plan, crash=None):
        """Fits; returns the weights before it, and how many epochs ran."""
        before = weights_of(self.model)
        unfreezing = ktf.callbacks.GradualUnfreezing(plan, verbose=0)
        callbacks = [unfreezing] + ([] if crash is None else [CrashAt(crash)])
        options = {"batch_size": 4, "verbose": 0, "shuffle": False}
        epochs = len(plan.stages) if crash is None else crash + 1
        if crash is None:
            self.model.fit(X, Y, callbacks=callbacks, **options)
        else:
            with pytest.raises(CrashError):
                self.model.fit(X, Y, callbacks=callbacks, **options)
        return before, epochs

    @rule(plan=st.lists(stages, min_size=1, max_size=2), crash=st.none() | st.integers(0, 1))
    def fit(self, plan, crash):
        crash = None if crash is None else min(crash, len(plan) - 1)
        plan, trains = self.plan_of(plan)
        before, epochs = self.run(plan, crash)
        moved = set()
        for self.trains in trains[:epochs]:
            moved |= self.trains
            for name in self.trains:
                self.updates[name] += STEPS
        after = weights_of(self.model)
        for name in self.names:
            same = all(np.array_equal(a, b) for a, b in zip(before[name], after[name], strict=True))
            assert same != (name in moved), (name, moved)

    @rule(epochs=st.integers(1, 2))
    def fit_without_a_plan(self, epochs):
        before = weights_of(self.model)
        self.model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0)
        after = weights_of(self.model)
        for name in self.names:
            if name in self.trains:
                self.updates[name] += STEPS * epochs
            elif not all(map(np.array_equal, before[name], after[name])):
                raise AssertionError(f"{name} was frozen and moved")

    @rule(n=st.integers(-3, 2))
    def freeze_to(self, n):
        self.model.freeze_to(n)
        self.trains = set(self.names[n:])

    @rule()
    def save_and_load(self):
        path = self.folder / "model.keras"
        predictions = self.model.predict(X, verbose=0)
        self.model.save(path)
        self.model = keras.saving.load_model(path)
        np.testing.assert_array_equal(self.model.predict(X, verbose=0), predictions)

    @rule()
    def weights_into_a_new_model(self):
        path = self.folder / "all.weights.h5"
        self.model.save_weights(path)
        fresh = make_model(self.eagerly, self.groups)
        fresh.load_weights(path)
        for name, values in weights_of(self.model).items():
            for one, other in zip(values, weights_of(fresh)[name], strict=True):
                np.testing.assert_array_equal(one, other)

    @rule(plan=st.lists(stages, min_size=2, max_size=2))
    def crash_and_resume(self, plan):
        """A run that crashes and goes on ends where the same run without the crash ends."""
        plan, trains = self.plan_of(plan)
        directory = tempfile.mkdtemp(dir=self.folder)
        start = self.folder / "start.keras"
        self.model.save(start)
        ends, histories = [], []
        for crashes in (False, True):
            model = keras.saving.load_model(start)
            for crash in [1, None] if crashes else [None]:
                callbacks = [ktf.callbacks.GradualUnfreezing(plan, verbose=0)]
                if crashes:
                    callbacks.append(
                        ktf.callbacks.ResumableTraining(directory, save_freq=1, verbose=0)
                    )
                try:
                    extra = [] if crash is None else [Crash(crash)]
                    keras.utils.set_random_seed(7)
                    made = model.fit(X, Y, batch_size=4, verbose=0, callbacks=callbacks + extra)
                except CrashError:
                    model = keras.saving.load_model(start)
            ends.append(model)
            histories.append(made.history)
        for name, values in weights_of(ends[0]).items():
            for one, other in zip(values, weights_of(ends[1])[name], strict=True):
                np.testing.assert_array_equal(one, other)
        np.testing.assert_equal(histories[0], histories[1])
        assert ends[0].optimizer.group_steps == ends[1].optimizer.group_steps
        self.model = ends[1]
        for self.trains in trains:
            for name in self.trains:
                self.updates[name] += STEPS

    @invariant()
    def flags_and_counts_agree(self):
        if not hasattr(self, "model"):
            return
        for group in self.model.layer_groups:
            assert all(v.trainable == (group.name in self.trains) for v in group.variables)
        steps = self.model.optimizer.group_steps
        assert {name: steps.get(name, 0) for name in self.names} == self.updates


class Crash(CrashAt):
    """Crashes in the middle of an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        pass

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.at:
            raise CrashError

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def run_histories(examples, steps, capsys, *, eagerly):
    Histories.count = 0
    Histories.eagerly = eagerly
    machine = Histories.TestCase
    machine.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    machine("runTest").runTest()
    with capsys.disabled():
        print(f"\n{Histories.count} histories of up to {steps} steps tried, 0 failed.")


def test_histories(capsys):
    run_histories(5, 6, capsys, eagerly=True)


@pytest.mark.exhaustive
def test_hundreds_of_histories(capsys):
    run_histories(300, 10, capsys, eagerly=False)
