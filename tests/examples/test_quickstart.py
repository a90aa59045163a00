import keras
import pytest

from examples import quickstart
from examples.pretrained.efficientnet_lite0 import efficientnet_lite0


def small(include_top, input_shape, weights="imagenet"):
    """A network as the quickstart's is made, for which tracing takes no time."""
    assert not include_top
    assert weights in (None, "imagenet")
    layers = [keras.Input(input_shape)]
    for number in range(4):
        layers.append(keras.layers.Conv2D(8, 3, strides=2, padding="same", name=f"c{number}"))
        layers.append(keras.layers.BatchNormalization(name=f"n{number}"))
        layers.append(keras.layers.ReLU(name=f"r{number}"))
    return keras.Sequential(layers, name="small")


def test_the_shortened_quickstart_runs_prints_a_table_and_draws(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(quickstart, "efficientnet_lite0", small)
    picture = tmp_path / "quickstart.png"
    arguments = ["--quick", "--labels=40", "--test-size=50", "--image-size=32"]
    pretrained, scratch = quickstart.main([*arguments, f"--output={picture}"])
    assert pretrained.history["stage"] == [0, 0, 1, 1]
    assert scratch.history["stage"] == [0] * 7
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{pretrained.accuracy:.3f} ± " in printed
    assert "stage 'all' trains c0 to classification_head" in printed
    assert quickstart.efficientnet_lite0 is not efficientnet_lite0


@pytest.mark.exhaustive
def test_the_shortened_quickstart_learns_on_the_real_weights(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "quickstart.png"
    pretrained, scratch = quickstart.main(
        ["--quick", "--labels=100", "--test-size=100", "--image-size=48", f"--output={picture}"]
    )
    # Chance is 0.1. The network from scratch has too few epochs here to say anything.
    assert pretrained.accuracy > 0.4
    assert pretrained.history["stage"] == [0, 0, 1, 1]
    assert scratch.history["stage"] == [0] * 7
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{pretrained.accuracy:.3f} ± " in printed
    assert "stage 'all' trains stem_conv to classification_head" in printed


def test_an_unknown_backbone_ends_with_what_to_try():
    with pytest.raises(
        SystemExit, match=r"keras\.applications has no model 'mobilenet'. Did you mean MobileNet"
    ):
        quickstart.pretrained_backbone("mobilenet", 64)
