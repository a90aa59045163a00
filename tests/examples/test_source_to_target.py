import numpy as np
import pytest

from examples import source_to_target


@pytest.fixture(scope="module")
def source(data_dir):
    return source_to_target.train_source(1, data_dir)


def test_every_layer_of_the_source_is_carried_over_bit_for_bit(source):
    backbone, report = source_to_target.carry_over(source)
    assert report.copied_share == 1
    assert len(report.with_status("copied")) == len(backbone.weights) == 10
    model = source_to_target.transfer_model(backbone)
    trained = source.get_layer("small_cnn").get_weights()
    untrained = source_to_target.small_cnn().get_weights()
    for carried, of_source, at_random in zip(
        model.backbone.model.get_weights(), trained, untrained, strict=True
    ):
        np.testing.assert_array_equal(carried, of_source)
        assert (carried != at_random).any()
    # The head is new.
    assert (model.head.get_weights()[0] != source.layers[-1].get_weights()[0]).any()


def test_the_examples_drawn_are_so_many_of_each_digit_and_in_no_other_set(data_dir):
    pool, test = source_to_target.target_task(data_dir)
    few, others = source_to_target.draw_labels(pool, per_class=5, seed=1)
    assert np.bincount(few.labels).tolist() == [5] * 10
    assert (len(few), len(others), len(test)) == (50, 747, 1000)
    sets = [{image.tobytes() for image in part.images} for part in (few, others, test)]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    nested, _ = source_to_target.draw_labels(pool, per_class=1, seed=1)
    assert {image.tobytes() for image in nested.images} <= sets[0]


def test_the_network_from_scratch_gets_no_fewer_updates():
    carried, scratch = source_to_target.PLANS.values()
    assert scratch.total_epochs >= carried.total_epochs


def test_the_shortened_comparison_finds_that_transfer_helps_and_prints_what_it_found(
    data_dir, tmp_path, capsys
):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "source_to_target.png"
    (result,) = source_to_target.main(
        [
            "--per-class=1",
            "--seeds=2",
            "--source-epochs=4",
            f"--data-dir={data_dir}",
            f"--output={picture}",
        ]
    )
    carried, scratch = result.accuracies.values()
    assert carried.shape == scratch.shape == (2,)
    # Chance is 0.1. With five seeds the gain is about 0.17, with a spread of 0.07.
    assert scratch.min() > 0.4
    assert carried.mean() > scratch.mean() + 0.03
    printed = capsys.readouterr().out
    for column in (carried, scratch, carried - scratch):
        assert f"{column.mean():.3f} ± {abs(column[0] - column[1]) / 2**0.5:.3f}" in printed
    assert "24,624 of 24,624 parameters (100.0%) of 'small_cnn' now come from model" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_one_seed_has_no_spread(capsys):
    with pytest.raises(SystemExit):
        source_to_target.main(["--seeds=1"])
    assert "--seeds must be at least 2, or there is no spread. Received: 1" in (
        capsys.readouterr().err
    )
