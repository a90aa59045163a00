"""The examples' data sets as builders of TensorFlow Datasets, which prepare them offline."""
