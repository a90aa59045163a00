import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_transfer as ktf
from examples import quickstart
from examples.pretrained.keras_applications import keras_application, model_names

ROOT = Path(__file__).resolve().parents[2]


def test_every_model_has_a_scaling_of_its_own():
    names = model_names()
    assert {"ConvNeXtTiny", "EfficientNetV2B0", "MobileNetV3Small", "NASNetMobile"} <= set(names)
    for name in names:
        file = getattr(keras.applications, name).__module__.rpartition(".")[2]
        assert callable(getattr(keras.applications, file).preprocess_input)


# White, in RGB: to [-1, 1], scaled inside the model, or BGR without ImageNet's means.
@pytest.mark.usually("MobileNetV2-scaled_white0")
@pytest.mark.parametrize(
    ("name", "scaled_white"),
    [
        ("MobileNetV2", [1, 1, 1]),
        ("EfficientNetB0", [255, 255, 255]),
        ("ResNet50", [151.061, 138.221, 131.32]),
    ],
)
def test_images_are_scaled_as_the_weights_expect(name, scaled_white):
    model, preprocess = keras_application(name, 32, weights=None)
    backbone = ktf.layers.PretrainedBackbone(model, preprocess=preprocess)
    white = np.full((1, 32, 32, 3), 255, "float32")
    np.testing.assert_allclose(preprocess(white.copy())[0, 0, 0], scaled_white, rtol=1e-5)
    np.testing.assert_allclose(
        backbone(white.copy()), model(preprocess(white.copy())), rtol=1e-4, atol=1e-5
    )


def test_the_network_from_scratch_is_the_one_that_was_asked_for():
    backbone = quickstart.untrained_backbone("MobileNetV2", 32)
    assert backbone.model.name.startswith("mobilenetv2")
    assert len(backbone.batch_norms) == 52
    assert {layer.momentum for layer in backbone.batch_norms} == {0.9}


def test_an_unknown_model_is_an_error_that_names_near_ones():
    with pytest.raises(ValueError, match=r"no model 'mobilenetv2'. Did you mean MobileNetV2 or"):
        keras_application("mobilenetv2", 32)
    with pytest.raises(ValueError, match=r"no model 'vit'. Try MobileNetV2\."):
        keras_application("vit", 32)


def test_images_too_small_for_the_model_are_an_error():
    message = r"Xception could not be made for images of 32x32 pixels: Input size must be at least"
    with pytest.raises(ValueError, match=message):
        keras_application("Xception", 32, weights=None)
    with pytest.raises(SystemExit, match=message):
        quickstart.pretrained_backbone("Xception", 32)


def in_a_new_process(code, keras_home):
    """Runs code where Keras finds downloaded weights in `keras_home`, and downloads nothing."""
    nowhere = "http://127.0.0.1:9"
    environment = {
        **os.environ,
        "KERAS_HOME": str(keras_home),
        "https_proxy": nowhere,
        "HTTPS_PROXY": nowhere,
        "no_proxy": "",
        "NO_PROXY": "",
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.exhaustive
def test_the_quickstart_runs_with_a_model_of_keras_applications(tmp_path):
    # One with few layers, which is what tracing takes time for.
    # Weights as Keras would have downloaded them: random ones, under their file's name.
    model, _ = keras_application("MobileNet", 32, weights=None)
    (tmp_path / "models").mkdir()
    file = tmp_path / "models/mobilenet_1_0_224_tf_no_top.h5"
    model.save(file)
    code = f"""
import numpy as np
from examples import quickstart
backbone = quickstart.pretrained_backbone("MobileNet", 32)
np.save({str(tmp_path / "stem.npy")!r}, backbone.model.get_layer("conv1").kernel.numpy())
quickstart.main(["--quick", "--backbone=MobileNet", "--labels=20", "--test-size=50",
                 "--image-size=32", {f"--output={tmp_path / 'picture.png'}"!r}])
"""
    run = in_a_new_process(code, tmp_path)
    assert run.returncode == 0, run.stderr
    stem = np.load(tmp_path / "stem.npy")
    np.testing.assert_array_equal(stem, model.get_layer("conv1").kernel.numpy())
    assert run.stdout.count("stage 'all' trains conv1 to classification_head") == 2
    assert "(50 test images, looked at once)" in run.stdout
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_download_that_fails_ends_with_what_to_do(tmp_path):
    code = "from examples import quickstart; quickstart.main(['--backbone=MobileNetV2'])"
    run = in_a_new_process(code, tmp_path)
    assert run.returncode == 1
    assert "The weights of MobileNetV2 could not be downloaded: URL fetch failure" in run.stderr
    assert "Without a network, run the quickstart without --backbone." in run.stderr
    assert "Traceback" not in run.stderr
