"What 04_augment promises, in tables: the draws, the batched twin beside albumentations, batches begun anywhere and shared."
import pickle

import albumentations as A
import numpy as np
import pytest
import torch

from cifar_resnet.augment import (FLIPS, KeyedImages, albumentations_batches, augment, augmentation_steps, batches, denormalise, draws,
                                  flips, keyed_steps, keyed_transforms, normalise)
from cifar_resnet.core import rng
from cifar_resnet.data import mean_std, shapes10

DATA = shapes10(n_train=300)[0]
MEAN, STD = mean_std(DATA.images)
IMAGES, LABELS = torch.from_numpy(DATA.images), torch.from_numpy(DATA.labels)


def grey_levels(x): return ((x.permute(0,2,3,1)*torch.tensor(STD) + torch.tensor(MEAN))*255).numpy()


# the draws

@pytest.mark.parametrize('how, share', [('none', 0), ('random', .5), ('alternating', .5)])
def test_flips(how, share):
    assert abs(flips(50_000, 0, 3, how).mean() - share) < .01
    assert (flips(50_000, 0, 3, how)[:9] == flips(9, 0, 3, how)).all()             # not by how many there are


@pytest.mark.parametrize('how, before, after, same', [
    ('random', 3, 4, .5),
    ('alternating', 3, 4, 0),
    ('alternating', 3, 5, 1),
    ('none', 3, 4, 1),
])
def test_flips_in_two_epochs(how, before, after, same):
    assert abs((flips(50_000, 0, before, how) == flips(50_000, 0, after, how)).mean() - same) < .01


@pytest.mark.parametrize('seed, epoch', [(1, 12), (0, 13)])
def test_other_seeds_and_epochs(seed, epoch):
    assert (draws(50_000, seed, epoch) != draws(50_000, 0, 12)).any(1).mean() > .999


def test_range_of_the_draws():
    table = draws(50_000, 0, 12)
    assert table.min(0)[:4].tolist() == [0]*4 and table.max(0)[:4].tolist() == [8, 8, 16, 16]
    assert -5 <= table[:,4].min() < -4.99 and 4.99 < table[:,4].max() <= 5


@pytest.mark.parametrize('how', FLIPS)
def test_the_mirror_changes_no_other_draw(how):
    table = draws(500, 0, 12, how)
    assert (table[:,:5] == draws(500, 0, 12)[:,:5]).all() and (table[:,5] == flips(500, 0, 12, how)).all()


# the batched twin

def test_normalised_and_back():
    pixels = torch.randint(0, 256, (4,32,32,3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert (denormalise(normalise(pixels, (.5,)*3, (.25,)*3), (.5,)*3, (.25,)*3) == pixels.numpy()).all()


@pytest.mark.parametrize('padding, hole, angle', [(4, 16, 5), (0, 1, 45), (8, 28, 180)])
def test_the_twin_at_other_sizes(padding, hole, angle):
    rows = draws(64, 3, 5, 'random', padding, hole, angle)
    ours = augment(IMAGES[:64], torch.from_numpy(rows), MEAN, STD, padding, hole)
    steps = A.Compose(keyed_steps(MEAN, padding, hole))
    theirs = np.stack([steps(image=i, draw=d)['image'] for i, d in zip(DATA.images, rows)])
    assert abs(grey_levels(ours) - theirs).max() <= 1


def test_sizes_reach_the_draws():
    far = draws(64, 3, 5, 'random', 8, 28, 180)
    assert far[:,:2].max() > 8 and far[:,2:4].max() == 4 and abs(far[:,4]).max() > 90


@pytest.mark.parametrize('mirrored, second', [(1, 'mirror'), (0, 'pad by 4')])
def test_names_of_the_steps(mirrored, second):
    steps = augmentation_steps(DATA.images[0], np.array([7, 1, 3, 12, 5, mirrored], np.float32), MEAN)
    assert list(steps)[:2] == ['original', second] and list(steps)[-1] == 'turn by 5.0°'


# batches

ORDER = torch.from_numpy(rng('order', 0, 0).permutation(300))
ARGS = IMAGES, LABELS, ORDER, torch.from_numpy(draws(300, 0, 0)), 128, MEAN, STD
BOTH = pytest.mark.parametrize('how', [batches, albumentations_batches])


@pytest.mark.parametrize('workers', [0, 2])
def test_the_same_batches_by_albumentations(workers):
    for (xa,ya), (xb,yb) in zip(batches(*ARGS), albumentations_batches(*ARGS, workers=workers), strict=True):
        assert torch.equal(ya, yb) and abs(grey_levels(xa) - grey_levels(xb)).max() <= 1.001


@BOTH
def test_begun_in_the_middle(how):
    later = how(IMAGES, LABELS, ORDER[128:], *ARGS[3:])
    for (xa,ya), (xb,yb) in zip(list(how(*ARGS))[1:], later, strict=True): assert torch.equal(xa, xb) and torch.equal(ya, yb)


@BOTH
def test_shared_by_two(how):
    parts = [how(*ARGS, slice(rank, None, 2)) for rank in range(2)]
    for (x,y), *halves in zip(how(*ARGS), *parts, strict=True):
        for rank, (xh,yh) in enumerate(halves): assert torch.equal(x[rank::2], xh) and torch.equal(y[rank::2], yh)


# albumentations, imported on first use

def test_the_classes_are_made_once(): assert keyed_transforms() is keyed_transforms()


def test_a_dataset_can_be_sent_to_a_worker():
    "Where workers are not forked a DataLoader pickles it."
    dataset = KeyedImages(DATA.images[:9], DATA.labels[:9], draws(9, 0, 0), MEAN)
    sent = pickle.loads(pickle.dumps(dataset))
    assert len(sent) == 9 and all((a == b).all() for (a,_), (b,_) in zip((sent[i] for i in range(9)), (dataset[i] for i in range(9))))
