"CIFAR-10.1 and CIFAR-10-C, on files of their layout that are written here: read as they are, and never believed."
import json, os, pickle, shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cifar_resnet import data as module, job as jobs
from cifar_resnet.augment import normalise
from cifar_resnet.core import not_run
from cifar_resnet.data import CIFAR10_CLASSES, CORRUPTIONS, EXTRA_CORRUPTIONS, Images, cifar10_1, cifar10_c, harder_sets, shapes10
from cifar_resnet.evaluate import accuracy, corruption_table, mean_corruption, predict, wilson
from cifar_resnet.job import harder, job
from cifar_resnet.recipe import Recipe
from cifar_resnet.train import load_run

N = 10                                                       # pictures a severity, here
TRAIN, TEST = (Images(part.images, part.labels, CIFAR10_CLASSES) for part in shapes10(n_train=2021, n_test=5*N))
Y = TRAIN.labels


@pytest.fixture
def small(monkeypatch): monkeypatch.setattr(module, 'CORRUPTED', N)


def newer(folder, version='v6', **change):
    "The files of CIFAR-10.1."
    n = dict(v4=2021, v6=2000)[version]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder/f'cifar10.1_{version}_data.npy', change.get('data', TRAIN.images[:n]))
    np.save(folder/f'cifar10.1_{version}_labels.npy', change.get('labels', Y[:n].astype(np.int32)))
    return folder


def spoilt(folder, kinds=('fog', 'snow'), n=N):
    "The files of CIFAR-10-C: the next severity of a kind is darker."
    top = folder/'CIFAR-10-C'
    top.mkdir(parents=True, exist_ok=True)
    first = TEST.images[:n]
    for i, kind in enumerate(kinds): np.save(top/f'{kind}.npy', np.concatenate([first//np.uint8(1 + s + i) for s in range(5)]))
    np.save(top/'labels.npy', np.tile(TEST.labels[:n], 5).astype(np.uint8))
    return folder


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    recipe = Recipe(dataset='shapes10', width=2, epochs=1, batch_size=20, limit=60)
    return job(recipe, tmp_path_factory.mktemp('harder')/'run', device='cpu', progress=False, draw=False, data=(TRAIN, TEST)).folder


@pytest.fixture
def run(finished, tmp_path):
    return load_run(shutil.copytree(finished, tmp_path/'run'))


# what is read

@pytest.mark.parametrize('version', ['v4', 'v6'])
@pytest.mark.parametrize('inside', ['', 'datasets', 'CIFAR-10.1/datasets'])
def test_new_pictures(version, inside, tmp_path):
    found = cifar10_1(newer(tmp_path/inside, version) and tmp_path, version)
    n = len(found)
    assert n == dict(v4=2021, v6=2000)[version] and isinstance(found.images, np.memmap) and not found.images.flags.writeable
    assert np.array_equal(found.images, TRAIN.images[:n]) and np.array_equal(found.labels, Y[:n]) and found.classes == CIFAR10_CLASSES


@pytest.mark.parametrize('severity', [1, 2, 3, 4, 5, np.int64(2)])
@pytest.mark.parametrize('inside', [False, True])
def test_spoilt_pictures(severity, inside, tmp_path, small):
    "Five severities, one after the other; `data_dir` is the folder or the one around it."
    top = spoilt(tmp_path, ['fog'])
    found = cifar10_c('fog', severity, top/'CIFAR-10-C' if inside else top)
    assert np.array_equal(found.images, TEST.images[:N]//np.uint8(severity)) and np.array_equal(found.labels, TEST.labels[:N])
    assert isinstance(found.images, np.memmap) and found.name == f'cifar10-c-fog-{severity}'


def test_the_published_size_is_what_is_expected(tmp_path):
    "50,000 pictures: five times 10,000. (A file with a hole takes no room.)"
    top = tmp_path/'CIFAR-10-C'
    top.mkdir()
    images = np.lib.format.open_memmap(top/'fog.npy', 'w+', np.uint8, (50_000, 32, 32, 3))
    images[20_000:30_000:1000] = 7
    del images
    labels = np.arange(50_000) % 10
    np.save(top/'labels.npy', labels)
    found = cifar10_c('fog', 3, tmp_path)
    assert len(found) == 10_000 and found.images[0].min() == found.images[9000].max() == 7 and found.images[1].max() == 0
    np.save(top/'labels.npy', labels[:10_000])
    with pytest.raises(ValueError, match=r'labels.npy must hold CIFAR-10-C as an array \(50000,\)'): cifar10_c('fog', 3, tmp_path)


def test_the_corruptions_are_those_of_the_paper():
    assert (len(set(CORRUPTIONS)), len(set(EXTRA_CORRUPTIONS)), set(CORRUPTIONS) & set(EXTRA_CORRUPTIONS)) == (15, 4, set())


def test_all_that_is_there(tmp_path, small):
    sets = harder_sets(spoilt(newer(newer(tmp_path), 'v4'), ['saturate', 'fog']))
    assert list(sets) == [('cifar10.1-v4', None), ('cifar10.1-v6', None), *((kind, s) for kind in ('fog', 'saturate') for s in (1, 2, 3, 4, 5))]


def test_the_usual_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('CIFAR10_DIR', str(newer(tmp_path)))
    assert list(harder_sets()) == [('cifar10.1-v6', None)]


def test_the_real_ones():
    "Where they are: their sizes, and that a class has about as many pictures as another."
    top = os.environ.get('CIFAR10_DIR')
    try: sets = harder_sets(top) if top else {}
    except FileNotFoundError: sets = {}
    if not sets:
        not_run('the real CIFAR-10.1 and CIFAR-10-C: they are not in CIFAR10_DIR')
        pytest.skip('they are not here')
    for images in sets.values(): assert np.bincount(images.labels, minlength=10).min() > 100


# what is refused

def files(path):
    "An array that only a pickle can hold, where it would make a file if it were read."
    class Evil:
        def __reduce__(self): return os.mkdir, (str(path.parent/'evil'),)
    np.save(path, np.array([Evil()], dtype=object), allow_pickle=True)


BAD_NEW = {
    'labels are missing': (lambda d, l: l.unlink(), 'there is no file .*labels.npy: CIFAR-10.1 is published at https'),
    'pixels as floats': (lambda d, l: np.save(d, TRAIN.images[:2000]/255), 'must hold pixels of uint8'),
    'pixels as int8': (lambda d, l: np.save(d, TRAIN.images[:2000].astype(np.int8)), 'must hold pixels of uint8'),
    'channels first': (lambda d, l: np.save(d, TRAIN.images[:2000].transpose(0, 3, 1, 2)), r'as an array \(2000, 32, 32, 3\)'),
    'of another version': (lambda d, l: np.save(d, TRAIN.images[:2021]), r'as an array \(2000, 32, 32, 3\), not'),
    'grey': (lambda d, l: np.save(d, TRAIN.images[:2000, ..., 0]), 'as an array'),
    'a number': (lambda d, l: np.save(d, np.uint8(3)), 'as an array'),
    'too few labels': (lambda d, l: np.save(l, Y[:1999]), r'as an array \(2000,\)'),
    'one-hot labels': (lambda d, l: np.save(l, np.eye(10)[Y[:2000]]), r'as an array \(2000,\)'),
    'labels of CIFAR-100': (lambda d, l: np.save(l, np.arange(2000) % 100), 'does not hold labels of CIFAR-10 .*from 0 to 9, not 0 to 99'),
    'negative labels': (lambda d, l: np.save(l, Y[:2000] - 1), 'from 0 to 9, not -1 to 8'),
    'labels of NaN': (lambda d, l: np.save(l, np.full(2000, np.nan)), 'must be whole numbers'),
    'labels in halves': (lambda d, l: np.save(l, Y[:2000] + .5), 'must be whole numbers'),
    'labels in words': (lambda d, l: np.save(l, np.full(2000, 'kitten')), "there is no class 'kitten'"),
    'a pickle': (lambda d, l: files(d), 'is no NumPy file of numbers'),
    'labels as a pickle': (lambda d, l: files(l), 'is no NumPy file of numbers'),
    'only a pickle': (lambda d, l: d.write_bytes(pickle.dumps([1])), 'is no NumPy file of numbers'),
    'an archive': (lambda d, l: np.savez(open(d, 'wb'), TRAIN.images[:9]), 'must hold CIFAR-10.1 as an array'),
    'cut off': (lambda d, l: d.write_bytes(d.read_bytes()[:-1]), 'is no NumPy file of numbers'),
    'only a head': (lambda d, l: d.write_bytes(d.read_bytes()[:128]), 'is no NumPy file of numbers'),
    'a head cut off': (lambda d, l: d.write_bytes(d.read_bytes()[:40]), 'is no NumPy file of numbers'),
    'empty': (lambda d, l: d.write_bytes(b''), 'is no NumPy file of numbers'),
    'a page': (lambda d, l: d.write_text('<!doctype html><title>404</title>'), 'is no NumPy file of numbers'),
    'a folder': (lambda d, l: (l.unlink(), l.mkdir()), 'there is no file'),
    'a pipe': (lambda d, l: (l.unlink(), os.mkfifo(l)), 'is a device or a pipe'),
    'a link to nothing': (lambda d, l: (l.unlink(), l.symlink_to('nowhere')), 'is a link that leads nowhere'),
}


@pytest.mark.trust('other hands', 'files of CIFAR-10.1 and CIFAR-10-C that are none')
@pytest.mark.parametrize('kind', BAD_NEW)
def test_new_pictures_that_are_none(kind, tmp_path):
    damage, words = BAD_NEW[kind]
    newer(tmp_path)
    damage(tmp_path/'cifar10.1_v6_data.npy', tmp_path/'cifar10.1_v6_labels.npy')
    for read in (cifar10_1, harder_sets):
        with pytest.raises((ValueError, OSError), match=words) as e: read(tmp_path)
        assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)
    assert not (tmp_path/'evil').exists()


@pytest.mark.trust('other hands', 'files of CIFAR-10.1 and CIFAR-10-C that are none')
@pytest.mark.parametrize('damage, words', [
    (lambda top: (top/'labels.npy').unlink(), 'there is no file .*labels.npy: CIFAR-10-C is published at https://zenodo.org/records/2535967'),
    (lambda top: np.save(top/'fog.npy', TEST.images[:N]), 'fog.npy must hold CIFAR-10-C as an array'),
    (lambda top: np.save(top/'fog.npy', np.zeros((5*N, 32, 32, 3))), 'fog.npy must hold pixels of uint8'),
    (lambda top: np.save(top/'labels.npy', TEST.labels[:N]), 'labels.npy must hold CIFAR-10-C as an array'),
    (lambda top: np.save(top/'labels.npy', np.full(5*N, 10)), 'labels.npy does not hold labels of CIFAR-10'),
    (lambda top: files(top/'fog.npy'), 'fog.npy is no NumPy file of numbers'),
    (lambda top: (top/'fog.npy').write_bytes((top/'fog.npy').read_bytes()[:-1]), 'fog.npy is no NumPy file of numbers'),
])
def test_spoilt_pictures_that_are_none(damage, words, tmp_path, small):
    damage(spoilt(tmp_path)/'CIFAR-10-C')
    for read in (lambda d: cifar10_c('fog', 1, d), harder_sets):
        with pytest.raises((ValueError, OSError), match=words) as e: read(tmp_path)
        assert '\n' not in str(e.value)
    assert not (tmp_path/'CIFAR-10-C'/'evil').exists()


@pytest.mark.trust('other hands', 'files of CIFAR-10.1 and CIFAR-10-C that are none')
@pytest.mark.parametrize('ask, words', [
    (lambda d: cifar10_1(d), r'there is no file .*cifar10.1_v6_data.npy: CIFAR-10.1 is published at https://github.com/modestyachts/CIFAR-10.1, and not fetched'),
    (lambda d: cifar10_1(d, 'v7'), "there is no version 'v7': choose v4 or v6"),
    (lambda d: cifar10_1(d, 6), 'there is no version 6'),
    (lambda d: cifar10_c('fog', 1, d), 'there is no file .*fog.npy: CIFAR-10-C is published at'),
    (lambda d: cifar10_c('mist', 1, d), "there is no corruption 'mist': choose gaussian_noise"),
    (lambda d: cifar10_c('../fog', 1, d), 'there is no corruption'),
    (lambda d: cifar10_c('fog', 0, d), 'a severity is a whole number from 1 to 5, not 0'),
    (lambda d: cifar10_c('fog', 6, d), 'a severity is'),
    (lambda d: cifar10_c('fog', True, d), 'a severity is'),
    (lambda d: cifar10_c('fog', '3', d), 'a severity is'),
    (lambda d: cifar10_c('fog', 1.0, d), 'a severity is a whole number from 1 to 5, not 1.0'),
    (lambda d: cifar10_c('fog', np.array([1, 2]), d), 'a severity is a whole number from 1 to 5, not a NumPy array'),
    (lambda d: harder_sets(d), 'holds neither CIFAR-10.1 .* nor the folder CIFAR-10-C: .*published .*not fetched here'),
    (lambda d: harder_sets(d/'none'), 'holds neither'),
])
def test_what_is_not_there(ask, words, tmp_path):
    with pytest.raises((ValueError, OSError), match=words) as e: ask(tmp_path)
    assert '\n' not in str(e.value)


# the table

def test_a_table_by_hand():
    logits = {('fog', 1): torch.eye(4), ('fog', 2): torch.eye(4), ('snow', 1): -torch.eye(4)}
    labels = {('fog', 1): torch.arange(4), ('fog', 2): torch.tensor([0, 1, 0, 0]), ('snow', 1): torch.arange(4)}
    rows = corruption_table(logits, labels)
    assert [(r['corruption'], r['severity'], r['right'], r['images']) for r in rows] == [('fog', 1, 4, 4), ('fog', 2, 2, 4), ('snow', 1, 0, 4)]
    assert (rows[1]['low'], rows[1]['high']) == wilson(2, 4)
    assert mean_corruption(rows, ['fog'], (1, 2)) == dict(accuracy=.75, error=.25, missing=[])
    assert mean_corruption(rows, ['fog', 'snow'], (1,)) == dict(accuracy=.5, error=.5, missing=[])
    assert mean_corruption(rows, ['fog', 'snow', 'frost'], (1, 2)) == dict(accuracy=None, error=None, missing=['snow', 'frost'])


@pytest.mark.parametrize('logits, words', [(torch.eye(3), '3 images need 3 labels, not 4'), (torch.full((4, 4), torch.nan), 'NaN'), ([], 'logits must be')])
def test_a_table_of_nonsense(logits, words):
    with pytest.raises(ValueError, match=words): corruption_table({('fog', 1): logits}, {('fog', 1): torch.arange(4) % 3})


# a run

def sealed(run): return {name: (run.folder/name).read_bytes() for name in ('run.json', 'logits.safetensors', 'weights.safetensors', 'history.csv', 'split.npz')}


@pytest.mark.filterwarnings('error')
def test_a_run_is_asked_and_stays_sealed(run, tmp_path, small):
    before = sealed(run)
    table = harder(run, spoilt(newer(tmp_path)), device='cpu')
    assert sealed(run) == before and load_run(run.folder).metrics == run.metrics and run.metrics['test_reads'] == 1
    assert json.loads((run.folder/'harder'/'table.json').read_text()) == table
    sets = harder_sets(tmp_path)
    assert len(table['rows']) == len(sets) == 11 and table['mean']['missing'] == [c for c in CORRUPTIONS if c not in ('fog', 'snow')]
    for row, (key, images) in zip(table['rows'], sets.items()):
        x = normalise(torch.from_numpy(np.array(images.images)), run.metrics['mean'], run.metrics['std'])
        logits = predict(run.model, x)
        assert (row['corruption'], row['severity']) == key and row['accuracy'] == accuracy(logits, torch.from_numpy(images.labels))
        assert torch.allclose(load_file(run.folder/'harder'/f'{images.name}.safetensors')['logits'], logits, atol=1e-4)


def test_all_corruptions_have_a_mean(run, tmp_path, small):
    table = harder(run.folder, spoilt(tmp_path, (*CORRUPTIONS, *EXTRA_CORRUPTIONS)), device='cpu')
    ours = [row['accuracy'] for row in table['rows'] if row['corruption'] in CORRUPTIONS]
    assert len(table['rows']) == 19*5 and len(ours) == 75
    assert table['mean'] == dict(accuracy=pytest.approx(np.mean(ours)), error=pytest.approx(1 - np.mean(ours)), missing=[])


def test_only_what_is_missing_is_computed(run, tmp_path, small, monkeypatch):
    seen = []
    monkeypatch.setattr(jobs, 'predict', lambda model, x: seen.append(len(x)) or predict(model, x))
    first = harder(run, spoilt(tmp_path, ['fog']), device='cpu')
    assert len(seen) == 5 and harder(run, tmp_path, device='cpu') == first and len(seen) == 5
    harder(run, spoilt(tmp_path, ['fog', 'frost']), device='cpu')
    assert len(seen) == 10
    (run.folder/'harder'/'cifar10-c-fog-2.safetensors').write_bytes(b'damaged')
    assert harder(run, tmp_path, device='cpu')['rows'][5:] == first['rows'] and len(seen) == 11               # after frost


@pytest.mark.trust('other hands', 'logits of other weights or pictures are not taken for these')
@pytest.mark.parametrize('change', ['pictures', 'labels', 'weights', 'nan', 'shape'])
def test_logits_of_something_else(run, tmp_path, small, monkeypatch, change):
    harder(run, spoilt(tmp_path, ['fog']), device='cpu')
    path = run.folder/'harder'/'cifar10-c-fog-1.safetensors'
    with safe_open(path, 'pt') as f: said, logits = f.metadata(), f.get_tensor('logits')
    top = tmp_path/'CIFAR-10-C'
    if change == 'pictures': np.save(top/'fog.npy', np.load(top/'fog.npy') ^ 1)
    if change == 'labels': np.save(top/'labels.npy', (np.load(top/'labels.npy') + 1) % 10)
    if change == 'weights': save_file(dict(logits=logits + 1), path, {k: v.replace('"weights": "', '"weights": "0') for k, v in said.items()})
    if change == 'nan': save_file(dict(logits=logits*torch.nan), path, said)
    if change == 'shape': save_file(dict(logits=logits[:-1]), path, said)
    seen = []
    monkeypatch.setattr(jobs, 'predict', lambda model, x: seen.append(len(x)) or predict(model, x))
    rows = harder(run, tmp_path, device='cpu')['rows']
    assert len(seen) == (5 if change in ('pictures', 'labels') else 1)
    images = cifar10_c('fog', 1, tmp_path)
    x = normalise(torch.from_numpy(np.array(images.images)), run.metrics['mean'], run.metrics['std'])
    assert rows[0]['accuracy'] == accuracy(predict(run.model, x), torch.from_numpy(images.labels))


def test_a_run_on_other_classes(tmp_path):
    recipe = Recipe(dataset='shapes10', width=2, epochs=1, batch_size=20, limit=60)
    run = job(recipe, tmp_path/'run', device='cpu', progress=False, draw=False, data=shapes10(n_train=200, n_test=40))
    with pytest.raises(ValueError, match='knows other classes than those of CIFAR-10'): harder(run, newer(tmp_path), device='cpu')
    assert not (run.folder/'harder').exists()


@pytest.mark.parametrize('damage', [lambda d: (d/'cifar10.1_v6_labels.npy').unlink(), lambda d: (d/'CIFAR-10-C'/'labels.npy').unlink()])
def test_what_is_damaged_is_said_before_anything_is_computed(run, tmp_path, small, damage):
    damage(spoilt(newer(tmp_path)))
    with pytest.raises(FileNotFoundError): harder(run, tmp_path, device='cpu')
    assert not (run.folder/'harder').exists()
