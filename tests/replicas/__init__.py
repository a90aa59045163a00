"""Scripts that need two replicas, and so a process of their own."""

import tensorflow as tf


def two_cpu_devices(**options):
    """Returns a strategy over two logical CPU devices.

    A script has to call this before TensorFlow does anything else.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], **options)
