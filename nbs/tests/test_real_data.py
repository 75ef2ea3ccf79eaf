"What can be checked only with the real CIFAR-10: set CIFAR10_DIR to the folder that contains cifar-10-batches-py."
import os

import numpy as np
import pytest

REAL = os.environ.get('CIFAR10_DIR')
pytestmark = pytest.mark.skipif(not REAL, reason='CIFAR10_DIR is not set: the real CIFAR-10 is not at hand')


@pytest.fixture(scope='module')
def data():
    from cifar_resnet.data import cifar10
    return cifar10(REAL)


def test_as_torchvision_reads_it(data):
    from torchvision.datasets import CIFAR10
    for part, is_train in zip(data, (True, False)):
        theirs = CIFAR10(REAL, train=is_train)
        assert np.array_equal(part.images, theirs.data) and part.labels.tolist() == theirs.targets and list(part.classes) == theirs.classes


def test_split(data):
    from cifar_resnet.data import split
    train_idx, valid_idx = split(data[0].labels)
    assert len(train_idx) == 45_000 and np.bincount(data[0].labels[valid_idx]).tolist() == [500]*10


def test_by_name(data):
    from cifar_resnet.data import DATASETS, load_data
    assert [p.fingerprint() for p in load_data('cifar10', REAL)] == [p.fingerprint() for p in data]
    assert DATASETS['cifar10'].sha256 == data[0].fingerprint()
    assert data[0].classes == DATASETS['cifar10'].classes


def test_fingerprints(data):
    "Other versions of the pictures are proved by these."
    from cifar_resnet.data import BATCHES, FINGERPRINTS
    batches = [data[0].take(slice(i, i+10_000)) for i in range(0, 50_000, 10_000)] + [data[1]]
    assert {name: b.fingerprint() for name, b in zip(BATCHES, batches)} == FINGERPRINTS


def test_two_epochs_of_learning(data, tmp_path):
    "1,000 images, a narrow network, batch norm (which starts fast): better than chance on held-out images."
    from cifar_resnet.train import Recipe, Training
    training = Training(Recipe(width=8, epochs=3, limit=2000, batch_size=50, norm='batch'), data[0], device='cpu')
    rows = list(training)
    assert rows[-1]['valid_accuracy'] > .25 and rows[-1]['train_loss'] < rows[0]['train_loss']
