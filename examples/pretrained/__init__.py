"""Pretrained networks rebuilt in Keras, with weights from installed packages."""
