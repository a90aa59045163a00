"""Carries weights into a model on two replicas, and back; see tests/weights/test_sources.py."""

import json

from keras_transfer.weights import transfer_weights
from tests.replicas import two_cpu_devices
from tests.weights import models


def main():
    strategy = two_cpu_devices()
    source = models.randomize(models.classifier(5))
    with strategy.scope():
        target = models.classifier(5)
    transfer_weights(source, target)
    copies = [strategy.experimental_local_results(v.value) for v in target.weights]
    back = models.randomize(models.backbone())
    transfer_weights(target, back)
    wanted = [weight.ravel().tolist() for weight in source.get_weights()]
    found = [[copy.numpy().ravel().tolist() for copy in of_one] for of_one in copies]
    returned = [weight.ravel().tolist() for weight in back.get_weights()]
    print(json.dumps({"wanted": wanted, "copies": found, "back": returned}))


if __name__ == "__main__":
    main()
