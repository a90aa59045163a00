import pytest

from keras_transfer import LayerGroup, LayerGroups
from keras_transfer._patterns import claim_groups, stem_and_head
from keras_transfer.lr_groups import group_multipliers
from keras_transfer.optimizers import discriminative

NAMES = ["conv1", "block(1", "top"]
ALIASES = stem_and_head(NAMES)


def test_names_aliases_and_patterns_stand_for_groups():
    claimed = claim_groups(["stem", "block(1", "t.p"], NAMES, ALIASES)
    assert claimed == {"conv1": "stem", "block(1": "block(1", "top": "t.p"}


def test_a_group_that_is_called_head_keeps_its_name():
    names = ["head", "top"]
    assert claim_groups(["head"], names, stem_and_head(names)) == {"head": "head"}


def by_groups(pattern):
    LayerGroups([LayerGroup(n, ()) for n in NAMES], has_head=True).select(pattern)


def by_rates(pattern):
    group_multipliers(NAMES, rates=dict.fromkeys(pattern, 0.1))


def by_optimizer(pattern):
    optimizer = discriminative("sgd")
    optimizer.set_groups({name: [] for name in NAMES})
    optimizer.set_multipliers(dict.fromkeys(pattern, 0.1))


@pytest.mark.parametrize("entry", [by_groups, by_rates, by_optimizer])
@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["tpo"], r"No layer group matches 'tpo'\. Did you mean 'top'"),
        (["top", "head"], r"Patterns 'top' and 'head' both match the layer group 'top'"),
        (["con("], r"'con\(' is not a valid regular expression"),
    ],
)
def test_a_wrong_pattern_is_the_same_error_wherever_it_is_given(entry, patterns, message):
    with pytest.raises(ValueError, match=message):
        entry(patterns)
