"The same seed gives the same bits: three times in processes of their own, and however the pictures are brought along."
import hashlib

import pytest
import torch
from torch.utils.data import DataLoader

import doomed
from cifar_resnet.augment import KeyedImages, albumentations_batches, batches, draws, normalise
from cifar_resnet.core import rng
from cifar_resnet.data import mean_std, shapes10
from processes import finish, start
from test_faults import outcome

DATA = shapes10(n_train=200)[0]
MEAN, STD = mean_std(DATA.images)
TABLES = [torch.from_numpy(draws(len(DATA), 0, epoch)) for epoch in range(2)]
ORDERS = [torch.from_numpy(rng('order', 0, epoch).permutation(len(DATA))) for epoch in range(2)]


def digest(stream):
    "SHA-256 of all pictures and labels that a stream of batches yields."
    h = hashlib.sha256()
    for x, y in stream: h.update(x.contiguous().numpy().tobytes() + y.numpy().tobytes())
    return h.hexdigest()


def stream(how, epoch, **kw): return how(torch.from_numpy(DATA.images), torch.from_numpy(DATA.labels), ORDERS[epoch], TABLES[epoch], 32, MEAN, STD, **kw)


@pytest.mark.trust('same bits', 'a whole run, three times in three processes, in float32 and in bfloat16')
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('recipe', ['strict', 'best'])
def test_three_of_three(recipe, precision, tmp_path):
    how = '--recipe', recipe, '--precision', precision
    outs = [tmp_path/str(i) for i in range(3)]
    for process in [start(tmp_path/'log', doomed.run, out, *how) for out in outs]: assert finish(process) == 0
    first, *others = map(outcome, outs)
    assert all(other == first for other in others)
    assert doomed.run(tmp_path/'another', '--seed', '1', *how) == 0 and outcome(tmp_path/'another')[3] != first[3]
    other = {'fp32': 'bf16', 'bf16': 'fp32'}[precision]
    assert doomed.run(tmp_path/'rounded', *how[:3], other) == 0 and outcome(tmp_path/'rounded')[3] != first[3]


@pytest.mark.trust('same bits', 'batches of albumentations, by the number of workers')
@pytest.mark.parametrize('workers', [1, 2])
def test_workers(workers):
    assert digest(stream(albumentations_batches, 1, workers=workers)) == digest(stream(albumentations_batches, 1, workers=0)) != digest(stream(albumentations_batches, 0))


@pytest.mark.trust('same bits', 'batches of workers that stay alive: the same pictures again, whatever they did before')
@pytest.mark.parametrize('workers', [1, 2])
def test_persistent_workers(workers):
    dataset = KeyedImages(DATA.images, DATA.labels, TABLES[0].numpy(), MEAN)
    loader = DataLoader(dataset, 32, sampler=ORDERS[0].tolist(), num_workers=workers, persistent_workers=True)
    passes = [digest((normalise(x, MEAN, STD), y) for x, y in loader) for _ in range(3)]
    assert passes == [digest(stream(albumentations_batches, 0))]*3


@pytest.mark.trust('same bits', 'batches made on the device, however they are cut')
@pytest.mark.parametrize('bs', [1, 7, 200])
def test_batch_size(bs):
    "Row i of the table belongs to image i: whoever shares its batch."
    args = torch.from_numpy(DATA.images), torch.from_numpy(DATA.labels), ORDERS[0], TABLES[0]
    whole, cut = (torch.cat([x for x, y in batches(*args, n, MEAN, STD)]) for n in (32, bs))
    assert torch.equal(whole, cut)
