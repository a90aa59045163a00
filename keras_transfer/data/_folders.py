"""Image folders: `split/class/image` (as TFDS's ImageFolder) and `class/image` (as Keras's)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_transfer import _checks

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
# How the files begin that TensorFlow decodes: JPEG, PNG, GIF, BMP, WebP (in a RIFF).
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF")
# What a folder without splits answers to.
WHOLE = "train"

Files = list[tuple[str, int]]


class ImageFolders:
    """Images on disk by split and class.

    Args:
        root: A folder of `split/class/image` or `class/image`.

    Raises:
        ValueError: If the folder has neither layout, or a split lacks a class.
    """

    def __init__(self, root: Path) -> None:
        self.name = root.resolve().name
        by_split = {child.name: _classes(child) for child in _folders(root)}
        by_split = {split: classes for split, classes in by_split.items() if classes}
        flat = _classes(root)
        if flat and by_split:
            raise ValueError(
                "The folder holds images both as class/image and as split/class/image. "
                f"Received: {str(root)!r} with images in {sorted(flat)[0]!r} and in "
                f"'{sorted(by_split)[0]}/{sorted(by_split[sorted(by_split)[0]])[0]}'. "
                "Keep one layout."
            )
        if flat:
            by_split = {WHOLE: flat}
        if not by_split:
            raise ValueError(
                f"There is no data in {str(root)!r} that can be read. Expected a data set that "
                "TensorFlow Datasets has prepared, or images as `class/image.jpg` or "
                f"`split/class/image.jpg` (one of {', '.join(EXTENSIONS)})."
            )
        self.class_names = sorted({name for classes in by_split.values() for name in classes})
        self.splits: Mapping[str, Files] = {
            split: self._files(split, classes, root) for split, classes in by_split.items()
        }

    def _files(self, split: str, classes: Mapping[str, Sequence[Path]], root: Path) -> Files:
        missing = [name for name in self.class_names if name not in classes]
        if missing:
            raise ValueError(
                f"Split {split!r} has no images of class {', '.join(map(repr, missing[:5]))}, "
                "which other splits have. Add some, or take the class out everywhere. "
                f"Received: {str(root)!r}"
            )
        labelled = [
            (path, label) for label, name in enumerate(self.class_names) for path in classes[name]
        ]

        # By a digest of the relative name: classes are mixed, so that a slice has all of
        # them, and the order is the same on every machine and file system.
        def digest(entry: tuple[Path, int]) -> bytes:
            return hashlib.sha256(entry[0].relative_to(root).as_posix().encode()).digest()

        return [(str(path), label) for path, label in sorted(labelled, key=digest)]

    def dataset(self, split: str) -> tuple[tf.data.Dataset, int]:
        """Returns the split as a data set of (image, label), decoded, and its length."""
        files = self._sliced(split)
        paths, labels = [path for path, _ in files], [label for _, label in files]
        for path in paths:
            _check_image(path)

        def decode(path: Any, label: Any) -> Any:
            image = _decode(path)
            image.set_shape([None, None, 3])
            return image, label

        pairs = tf.data.Dataset.from_tensor_slices((paths, tf.constant(labels, tf.int64)))
        return pairs.map(decode, tf.data.AUTOTUNE, deterministic=True), len(files)

    def _sliced(self, split: str) -> Files:
        match = re.fullmatch(r"([^\[\]+]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
        if not match:
            raise ValueError(
                "`split` of an image folder must be a name or a slice of one, such as "
                f"'train[:80%]'. Received: split={split!r}"
            )
        name, start, stop = match.groups()
        if name not in self.splits:
            raise unknown_split(name, self.splits)
        files = self.splits[name]
        kept = files[slice(_bound(start, len(files)), _bound(stop, len(files)))]
        if not kept:
            raise ValueError(f"`split` holds no example. Received: split={split!r}")
        return kept


def unknown_split(name: str, known: Any) -> ValueError:
    """Returns the error for a split that is not there."""
    listed = ", ".join(map(repr, sorted(known)))
    return ValueError(
        f"There is no split {name!r}. The data has {listed}.{_checks.did_you_mean(name, known)}"
    )


def _decode(path: Any) -> Any:
    return tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)


def _check_image(path: str) -> None:
    """Raises where a file is empty, something else or cut off: the pipeline would not say which.

    Files that end as their format does are not decoded here, which takes as long as an epoch.
    """
    with open(path, "rb") as file:
        beginning = file.read(25)
        size = file.seek(0, 2)
        file.seek(max(0, size - 12))
        end = file.read()
    if not beginning.startswith(_BEGINNINGS):
        raise ValueError(
            f"A file is no image that can be read. Received: {path!r}, which "
            + (f"begins with {beginning[:8]!r}." if beginning else "is empty.")
            + " Copy or download it anew, or take it out of the folder."
        )
    if _looks_whole(beginning, end, size):
        return
    try:
        _decode(path)
    except tf.errors.InvalidArgumentError as error:
        reason = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message)
        raise ValueError(
            f"An image cannot be decoded ({' '.join(reason.split())}). Received: {path!r} of "
            f"{size} bytes. It may have been cut off: copy or download it anew, or take it out of "
            "the folder. A transparent WebP is not read: save it as PNG."
        ) from error


def _looks_whole(beginning: bytes, end: bytes, size: int) -> bool:
    if beginning.startswith(b"\xff\xd8"):
        return end.endswith(b"\xff\xd9")
    if beginning.startswith(b"\x89PNG"):
        return end[4:8] == b"IEND"
    if beginning.startswith(b"GIF8"):
        return end.endswith(b";")
    if beginning.startswith(b"BM"):
        return int.from_bytes(beginning[2:6], "little") <= size
    # Which byte says that a WebP is transparent, by its first chunk.
    at = {b"VP8X": 20, b"VP8L": 24}.get(beginning[12:16])
    is_transparent = at is not None and bool(int.from_bytes(beginning[at : at + 1]) & 0x10)
    whole = int.from_bytes(beginning[4:8], "little") + 8 <= size
    return beginning[8:12] == b"WEBP" and whole and not is_transparent


def _bound(text: str | None, count: int) -> int | None:
    if text is None:
        return None
    return round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)


def _folders(root: Path) -> list[Path]:
    return sorted(
        child for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")
    )


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Returns the images right under each subfolder that has any."""
    found = {child.name: _images(child) for child in _folders(folder)}
    return {name: images for name, images in found.items() if images}


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    )
