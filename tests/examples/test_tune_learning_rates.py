import pytest

from examples import tune_learning_rates


@pytest.mark.exhaustive
def test_the_example_compares_three_plans_and_draws_the_search(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune_learning_rates, "IMAGE_SIZE", 64)
    path = tmp_path / "search.png"
    found = tune_learning_rates.main(
        ["--trials=2", "--epochs=2", "--labels=40", "--test-size=100", f"--output={path}"]
    )
    assert list(found) == ["tuned plan", "default plan (LP-FT)", "head only"]
    assert all(0 <= accuracy <= 1 for accuracy in found.values())
    assert path.stat().st_size > 10_000
    assert "(100 test images, looked at once)" in capsys.readouterr().out
