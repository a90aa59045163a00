import pytest

from examples import quickstart


def test_the_shortened_quickstart_learns_prints_a_table_and_draws(tmp_path, capsys):
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
