"""Data as people have it: folders one too high or too deep, archives, other versions, a hundred classes, pictures of their own.

What is sure works, and is said; for the rest one sentence says what was seen and what to do. All files are written here: no test needs CIFAR-10.
"""
import hashlib, io, json, pickle, re, shutil, sys, tarfile, types, warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_resnet import data, explore
from cifar_resnet.cli import explain_main, main
from cifar_resnet.data import CIFAR10, CIFAR100, FOLDER, NOTES, Images, cifar10, cifar100, find_folder, load_data, picture_folder, shapes10, split
from cifar_resnet.explore import MANY, ConfusionButtons, ConfusionList, mistake_explorer, subject
from cifar_resnet.job import job, release, run_folder
from cifar_resnet.model import weights_metadata
from cifar_resnet.recipe import Recipe
from cifar_resnet.runs import read_json
from cifar_resnet.scale import sweep
from cifar_resnet.stepper import Stepper
from cifar_resnet.train import OWN, Training, load_run

COUNT = 10           # pictures in a batch here


# official files, in small

def numbers(i): return np.random.default_rng(i).integers(0, 256, (COUNT, 3072), np.uint8)

def files_of(archive):
    "The files of an archive: name -> bytes."
    held = lambda i: {b'data': numbers(i), archive.labels: list(range(COUNT))}
    files = {name: pickle.dumps(held(i), 4) for i, name in enumerate(archive.members)}
    if 'meta' in files: files['meta'] = pickle.dumps({b'fine_label_names': [c.encode() for c in archive.classes]}, 4)
    return files

def packed(archive, files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w:gz') as t:
        for name, held in files.items():
            m = tarfile.TarInfo(f'{archive.folder}/{name}'); m.size = len(held)
            t.addfile(m, io.BytesIO(held))
    return file.getvalue()

@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    "Small official files, whose sums are known; no mirror answers, and the default folder is empty."
    for archive in (CIFAR10, CIFAR100):
        files = files_of(archive)
        sums = {name: (len(b) if archive is CIFAR10 else None, hashlib.md5(b).hexdigest()) for name, b in files.items()}
        whole = packed(archive, files)
        small = replace(archive, members=sums, sha256=hashlib.sha256(whole).hexdigest(), size=len(whole))
        small.__dict__.update(files=files, whole=whole)
        monkeypatch.setattr(data, archive.name.upper(), small)
        monkeypatch.setenv(f'{archive.name.upper()}_MIRRORS', 'https://127.0.0.1:9/nothing')
    monkeypatch.setattr(data, 'BATCH', COUNT)
    parts = {name: data._from_planes(numbers(i), np.arange(COUNT), CIFAR10) for i, name in enumerate(data.BATCHES)}
    monkeypatch.setattr(data, 'FINGERPRINTS', {name: p.fingerprint() for name, p in parts.items()})
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.delenv('CIFAR10_DIR', raising=False)

def unpack(folder, archive=None):
    archive = archive or data.CIFAR10
    folder.mkdir(parents=True)
    for name, held in archive.files.items(): (folder/name).write_bytes(held)

def write(path, held=b'x'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(held)

@contextmanager
def saying(words=None):
    "Inside the block there is one warning, which says `words`; without `words`, none."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        yield
    told = [str(w.message) for w in caught]
    assert len(told) == (words is not None) and (words or '') in ''.join(told), told

def listing(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))

def check(train, test, archive=CIFAR10):
    "These are the official pictures, in the official order."
    n = len(archive.members) - 1 - ('meta' in archive.members)
    assert [len(train), len(test)] == [COUNT*n, COUNT] and train.name == test.name == archive.name
    order = [name for name in archive.members if name != 'meta']
    rows = [numbers(list(archive.members).index(name)) for name in order]
    assert (train.images.transpose(0,3,1,2).reshape(-1, 3072) == np.concatenate(rows[:-1])).all()
    assert (test.images.transpose(0,3,1,2).reshape(-1, 3072) == rows[-1]).all()


# 1. where the data lies

PLACES = {      # what is there -> the name that is given, what is said
    'in it': (f'd/{FOLDER}', 'd', None),
    'itself': (f'd/{FOLDER}', f'd/{FOLDER}', 'CIFAR-10 was found in'),
    'itself, under another name': ('d/mine', 'd/mine', 'CIFAR-10 was found in'),
    'one above': (f'd/x/{FOLDER}', 'd', 'CIFAR-10 was found in'),
    'twice the folder': (f'd/{FOLDER}/{FOLDER}', 'd', 'CIFAR-10 was found in'),
    'twice the folder, named': (f'd/{FOLDER}/{FOLDER}', f'd/{FOLDER}', None),
}

@pytest.mark.parametrize('there, named, said', PLACES.values(), ids=PLACES)
def test_places(there, named, said, tmp_path):
    unpack(tmp_path/there)
    write(tmp_path/'d'/'other.txt')
    before = listing(tmp_path)
    with saying(said): check(*cifar10(tmp_path/named))
    assert find_folder(tmp_path/named, data.CIFAR10) == tmp_path/there and listing(tmp_path) == before


def test_two_above_is_too_far(tmp_path):
    unpack(tmp_path/'d'/'x'/'y'/FOLDER)
    with pytest.raises(ValueError, match='holds x, but no CIFAR-10'): cifar10(tmp_path/'d')


def test_a_whole_folder_nearby_is_better_than_a_part(tmp_path):
    unpack(tmp_path/FOLDER); unpack(tmp_path/'x'/FOLDER)
    (tmp_path/FOLDER/'data_batch_2').unlink()
    with saying('CIFAR-10 was found in'): check(*cifar10(tmp_path))


@pytest.mark.parametrize('named', ['d', f'd/{FOLDER}'])
def test_notes_lie_beside_the_batches_wherever_they_were_found(named, tmp_path):
    unpack(tmp_path/'d'/FOLDER)
    noted = {'twins': {'columns': ['test'], 'rows': [[3]]}, 'labels_not_confirmed': {'rows': []}}
    (tmp_path/'d'/NOTES).write_text(json.dumps(noted))
    assert data.test_notes(tmp_path/named)['twins'].tolist() == [3]


ARCHIVES = {'in it': ('d', 'd', None), 'itself': ('d', f'd/{CIFAR10.file}', 'was found in'), 'one above': ('d/x', 'd', 'was found in')}

@pytest.mark.parametrize('at, named, said', ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_is_unpacked_where_it_is(at, named, said, tmp_path):
    write(tmp_path/at/CIFAR10.file, data.CIFAR10.whole); write(tmp_path/'d'/'other.txt')
    with saying(said): check(*cifar10(tmp_path/named))
    assert {p.name for p in (tmp_path/at/FOLDER).iterdir()} == set(CIFAR10.members)


def test_an_archive_that_is_not_the_official_one_is_kept(tmp_path):
    write(tmp_path/CIFAR10.file, data.CIFAR10.whole[:-1])
    with pytest.raises(ValueError, match='is not the official archive .* put the right one there, or remove it'): cifar10(tmp_path)
    assert listing(tmp_path) == [CIFAR10.file]


LINKS = {       # what is a broken link, the name that is given
    'the folder': ('d', 'd'), 'the folder of batches': (f'd/{FOLDER}', 'd'), 'that, named': (f'd/{FOLDER}', f'd/{FOLDER}'),
    'the archive': (f'd/{CIFAR10.file}', 'd'), 'the archive, named': (f'd/{CIFAR10.file}', f'd/{CIFAR10.file}')}

@pytest.mark.parametrize('at, named', LINKS.values(), ids=LINKS)
def test_a_link_that_leads_nowhere(at, named, tmp_path):
    (tmp_path/at).parent.mkdir(exist_ok=True)
    (tmp_path/at).symlink_to(tmp_path/'gone')
    before = listing(tmp_path)
    with pytest.raises(OSError, match='is a link that leads nowhere: mend it, or remove it'): cifar10(tmp_path/named)
    assert listing(tmp_path) == before


def test_a_link_to_the_data(tmp_path):
    unpack(tmp_path/'elsewhere'/FOLDER)
    (tmp_path/'d').symlink_to(tmp_path/'elsewhere'); (tmp_path/'elsewhere'/CIFAR10.file).symlink_to(tmp_path/'gone')
    with saying(): check(*cifar10(tmp_path/'d'))


def test_a_folder_called_like_the_archive(tmp_path):
    (tmp_path/CIFAR10.file).mkdir()
    with pytest.raises(ValueError, match='is a folder, not the archive'): cifar10(tmp_path)


@pytest.mark.parametrize('data_dir', [3, ['x'], b'x', 2.5], ids=str)
def test_what_is_no_path(data_dir):
    with pytest.raises(ValueError, match='a path is a str or a Path, not'): cifar10(data_dir)


def test_files_beside_other_things_are_not_to_be_deleted_with_them(tmp_path):
    unpack(tmp_path/'Downloads'); write(tmp_path/'Downloads'/'thesis.pdf'); write(tmp_path/'Downloads'/'data_batch_2')
    with pytest.raises(ValueError, match='data_batch_2 is damaged.*name an empty folder') as e, saying('was found'): cifar10(tmp_path/'Downloads')
    assert 'delete' not in str(e.value)
    unpack(tmp_path/FOLDER); write(tmp_path/FOLDER/'data_batch_2')
    with pytest.raises(ValueError, match=f'data_batch_2 is damaged.*or delete {re.escape(str(tmp_path/FOLDER))} to fetch it anew'): cifar10(tmp_path)


def test_files_that_are_only_called_like_those_of_cifar100(tmp_path):
    for name in ('train', 'test', 'meta'): write(tmp_path/name)
    with pytest.raises(ValueError, match='holds meta, test, train, but no CIFAR-100'): cifar100(tmp_path)


def test_a_part_of_the_files(tmp_path):
    unpack(tmp_path/'d')
    for name in ('data_batch_2', 'test_batch'): (tmp_path/'d'/name).unlink()
    before = listing(tmp_path)
    with pytest.raises(OSError, match='holds 4 of 6 files of CIFAR-10, but not data_batch_2, test_batch: put'): cifar10(tmp_path/'d')
    assert listing(tmp_path) == before


def test_an_archive_where_nothing_can_be_written(tmp_path, monkeypatch):
    def full(*args): raise OSError(30, 'Read-only file system')
    write(tmp_path/CIFAR10.file, data.CIFAR10.whole)
    monkeypatch.setattr(data, 'take_members', full)
    with pytest.raises(OSError, match='cannot be unpacked where it is .Read-only file system.: copy it into another folder'): cifar10(tmp_path)


FETCHED = {     # what lies in the folder, and is no stranger
    'nothing': [], 'a part': [f'{CIFAR10.file}.part'], 'a folder of parts': [f'{FOLDER}.part/data_batch_1'], 'notes': [NOTES],
    'a hidden file': ['.DS_Store'], 'the other data set': ['cifar-100-python/train'], 'its archive': [CIFAR100.file]}

@pytest.mark.parametrize('there', FETCHED.values(), ids=FETCHED)
def test_fetched_into(there, tmp_path):
    for name in there: write(tmp_path/'d'/name)
    with pytest.raises(OSError, match='could not be fetched'): cifar10(tmp_path/'d')


def test_the_default_folder_may_hold_anything(tmp_path):
    write(tmp_path/'home'/'.cache'/'cifar_resnet'/'mine.txt')
    with pytest.raises(OSError, match='could not be fetched'): cifar10()


def test_fetched_and_unpacked(tmp_path, monkeypatch):
    def fetched(urls, path, sha256, size):
        write(path, data.CIFAR10.whole)
        return path
    monkeypatch.setattr(data, 'fetch', fetched)
    with saying(): check(*cifar10(tmp_path/'new'))
    with saying(): check(*cifar10(tmp_path/'named'/FOLDER))           # a folder that is not there yet, by its own name
    assert sorted(p.name for p in (tmp_path/'named').iterdir()) == sorted([CIFAR10.file, FOLDER])


STRANGERS = {   # what lies in the folder, what is said of it
    'photographs': (['beach.jpg', 'dune.jpg'], 'holds beach.jpg, dune.jpg, but no CIFAR-10: name the folder'),
    'many': ([f'{i}.txt' for i in range(9)], 'holds 0.txt, 1.txt, 2.txt and 6 more, but no'),
    'Kaggle': (['trainLabels.csv', 'train/1.png'], "this is Kaggle's version, whose test pictures have no labels"),
    'Kaggle, packed': (['train.7z', 'test.7z'], "this is Kaggle's version"),
    'the archive of the binary version': (['cifar-10-binary.tar.gz'], 'must be unpacked first'),
    'MATLAB': (['cifar-10-batches-mat/test_batch.mat'], 'the MATLAB version is not read'),
    'a batch alone': (['data_batch_1'], 'name the folder (--data_dir) that contains cifar-10-batches-py'),
    'another name of the archive': (['cifar-10-python (1).tar.gz'], 'or cifar-10-python.tar.gz'),
}

@pytest.mark.parametrize('there, said', STRANGERS.values(), ids=STRANGERS)
def test_nothing_is_fetched_into_a_folder_of_something_else(there, said, tmp_path):
    for name in there: write(tmp_path/'d'/name)
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=re.escape(said)): cifar10(tmp_path/'d')
    assert listing(tmp_path) == before


# other versions of the same pictures

def write_binary(folder, order=range(6), labels=np.arange(COUNT), cut=0):
    for i, name in zip(order, data.BATCHES):
        rows = np.concatenate([np.uint8(labels)[:,None], numbers(i)], 1)
        write(folder/f'{name}.bin', rows.tobytes()[cut:])

@pytest.mark.parametrize('at, named', [('d', 'd'), ('d/cifar-10-batches-bin', 'd'), ('d/x/cifar-10-batches-bin', 'd')])
@pytest.mark.parametrize('order', [range(6), (5, 3, 2, 1, 4, 0)], ids=['official order', 'another'])
def test_the_binary_version(at, named, order, tmp_path):
    write_binary(tmp_path/at, order)
    with saying('CIFAR-10 was found in'): check(*cifar10(tmp_path/named))


@pytest.mark.parametrize('how, said', [
    (dict(labels=np.arange(COUNT)[::-1]), 'does not hold the pictures and labels of CIFAR-10'),
    (dict(order=(0, 0, 2, 3, 4, 5)), 'does not hold the pictures and labels of CIFAR-10'),
    (dict(order=(6, 1, 2, 3, 4, 5)), 'does not hold the pictures and labels of CIFAR-10'),
    (dict(cut=1), 'data_batch_1.bin is missing or damaged: expected 30,730 bytes'),
    (dict(order=range(5)), 'test_batch.bin is missing or damaged'),
], ids=['other labels', 'a batch twice', 'another batch', 'cut', 'a file is missing'])
def test_a_binary_version_that_is_not_the_same(how, said, tmp_path):
    write_binary(tmp_path, **how)
    with pytest.raises(ValueError, match=said): cifar10(tmp_path)


def write_parquet(folder, monkeypatch, order=(3, 2, 1, 4, 0), column='img'):
    "The hub's files, and a stand-in for the library that reads them."
    def rows(parts):
        picture = lambda row: Image.fromarray(row.reshape(3,32,32).transpose(1,2,0))
        return {column: [{'bytes': png(picture(row)), 'path': None} for i in parts for row in numbers(i)], 'label': [*range(COUNT)]*len(parts)}
    held = {'train-00000-of-00001.parquet': rows(order), 'test-00000-of-00001.parquet': rows([5])}
    for name in held: write(folder/name)
    reads = lambda path: types.SimpleNamespace(to_pydict=lambda: held[Path(path).name])
    monkeypatch.setitem(sys.modules, 'pyarrow', types.ModuleType('pyarrow'))
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', types.SimpleNamespace(read_table=reads))

def png(image):
    file = io.BytesIO(); image.save(file, 'PNG')
    return file.getvalue()

@pytest.mark.parametrize('at', ['d', 'd/plain_text', 'd/x/plain_text'])
def test_the_parquet_version(at, tmp_path, monkeypatch):
    write_parquet(tmp_path/at, monkeypatch)
    with saying('CIFAR-10 was found in'): check(*cifar10(tmp_path/'d'))


def test_parquet_files_of_something_else(tmp_path, monkeypatch):
    write_parquet(tmp_path, monkeypatch, column='image')
    with pytest.raises(ValueError, match="does not hold CIFAR-10 as the hub has it .KeyError.'img'"): cifar10(tmp_path)


def test_parquet_without_its_library(tmp_path, monkeypatch):
    write_parquet(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with pytest.raises(ValueError, match='holds Parquet files: pip install pyarrow'): cifar10(tmp_path)


# 3. CIFAR-100

@pytest.mark.parametrize('named, said', [('d', None), ('d/cifar-100-python', 'CIFAR-100 was found in'), ('', 'CIFAR-100 was found in')])
def test_cifar100(named, said, tmp_path):
    unpack(tmp_path/'d'/'cifar-100-python', data.CIFAR100)
    with saying(said): train, test = load_data('cifar100', tmp_path/named)
    check(train, test, CIFAR100)
    assert len(train.classes) == 100 and train.labels.tolist() == list(range(COUNT))


def test_cifar100_from_its_archive(tmp_path):
    write(tmp_path/CIFAR100.file, data.CIFAR100.whole)
    check(*cifar100(tmp_path), CIFAR100)


def test_the_two_do_not_take_each_others_files(tmp_path):
    unpack(tmp_path/'cifar-100-python', data.CIFAR100)
    with pytest.raises(OSError, match='cifar-10-python.tar.gz could not be fetched'): cifar10(tmp_path)
    check(*cifar100(tmp_path), CIFAR100)


@pytest.mark.parametrize('name', ['train', 'test', 'meta'])
def test_a_damaged_file_of_cifar100(name, tmp_path):
    unpack(tmp_path/'cifar-100-python', data.CIFAR100)
    (tmp_path/'cifar-100-python'/name).write_bytes(b'x')
    with pytest.raises(ValueError, match=f'{name} is damaged: expected a file with MD5'): cifar100(tmp_path)


def test_other_classes(tmp_path, monkeypatch):
    unpack(tmp_path/'cifar-100-python', data.CIFAR100)
    monkeypatch.setattr(data, 'CIFAR100', replace(data.CIFAR100, classes=CIFAR100.classes[::-1]))
    with pytest.raises(ValueError, match='it names other classes'): cifar100(tmp_path)


def test_cifar100_by_the_command(tmp_path, capsys):
    "Ten pictures are too few to train on, and that is what is said."
    unpack(tmp_path/'cifar-100-python', data.CIFAR100)
    argv = f'--dataset cifar100 --data_dir {tmp_path} --width 1 --epochs 1 --device cpu --out {tmp_path}/run'.split()
    assert main(argv) == 2
    assert '10 images are too few: a share of 0.1 of each class is held out, and that is none' in capsys.readouterr().err
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('n, ok', [(5, False), (6, True)])
def test_a_split_holds_something_out(n, ok):
    if ok: assert [len(s) for s in split(np.zeros(n, int))] == [5, 1]
    else:
        with pytest.raises(ValueError, match='give at least 6 images of a class'): split(np.zeros(n, int))


# 2. names and labels

PIXELS, TWO = np.zeros((4, 32, 32, 3), np.uint8), ('cat', 'dog')
LABELS = {'int16': np.array([0, 1, 1, 0], np.int16), 'whole floats': np.array([0., 1, 1, 0]), 'one-hot': np.eye(2)[[0, 1, 1, 0]],
          'names': ['cat', 'dog', 'dog', 'cat'], 'a list': [0, 1, 1, 0], 'true and false': np.array([0, 1, 1, 0]) > 0, 'a tensor': torch.tensor([0, 1, 1, 0])}

@pytest.mark.parametrize('labels', LABELS.values(), ids=LABELS)
def test_labels_of_any_kind(labels):
    images = Images(PIXELS, labels, ['cat', 'dog'])
    assert images.labels.dtype == np.int64 and images.labels.tolist() == [0, 1, 1, 0] and images.classes == TWO and images.name == ''


CLASSES = {'a list': ['cat', 'dog'], 'an array': np.array(['cat', 'dog']), 'an iterator': iter(['cat', 'dog']),
           'numbers by name': {'dog': 1, 'cat': 0}, 'names by number': {1: 'dog', 0: 'cat'}, 'NumPy numbers': {'dog': np.int64(1), 'cat': np.int64(0)}}

@pytest.mark.parametrize('classes', CLASSES.values(), ids=CLASSES)
def test_classes_of_any_kind(classes):
    images = Images(PIXELS, ['cat', 'dog', 'dog', 'cat'], classes)
    assert images.classes == TWO and {type(c) for c in images.classes} == {str} and images.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize('classes', [pytest.param({'cat', 'dog'}, id='a set'), pytest.param(frozenset(TWO), id='a frozen set'), None, 2.5, b'cd', {'cat': 1, 'dog': 2}, {'cat': 0, 'dog': 0}, {1: 'cat', 2: 'dog'}, {'cat': 'a', 'dog': 'b'},
                                     {'cat': [0], 'dog': [1]}, ('', 'dog'), (['cat'], ['dog']), ('cafe\u0301', 'caf\u00e9')], ids=str)
def test_what_are_no_classes(classes):
    with pytest.raises(ValueError, match='classes must be two or more different names, by label, not'): Images(PIXELS, [0, 1, 1, 0], classes)


NUMERALS = {    # classes, labels, the classes that they are; None: it is not sure
    'names or numbers': ('123', [1, 2, 1, 2], None), 'all of them': (('0', '1', '10', '2'), [0, 1, 2, 0], None), 'a 0 is no name': ('123', [0, 1, 2, 1], [0, 1, 2, 1]),
    'names': ('123', ['1', '2', '1', '2'], [0, 1, 0, 1]), 'one-hot': ('123', np.eye(3)[[1, 2, 1, 2]], [1, 2, 1, 2]), 'the same': ('012', [1, 2, 1, 2], [1, 2, 1, 2]), 'not all numerals': ('12a', [1, 2, 1, 2], [1, 2, 1, 2])}

@pytest.mark.parametrize('classes, labels, meant', NUMERALS.values(), ids=NUMERALS)
def test_classes_called_by_numbers(classes, labels, meant):
    if meant:
        images = Images(PIXELS, labels, tuple(classes))
        assert images.labels.tolist() == meant and images.take([3, 1]).labels.tolist() == [meant[3], meant[1]]
    else:
        with pytest.raises(ValueError, match='labels may be numbers from 0, or names such as .*: give names'): Images(PIXELS, labels, tuple(classes))


def test_a_folder_of_classes_called_by_numbers(pets):
    train, _ = picture_folder(pets(classes=('1', '2', '10')))
    assert train.classes == ('1', '10', '2') and len(train.take(train.labels > 0)) == 16


@pytest.mark.parametrize('args, said', [
    ((np.ma.masked_equal(PIXELS, 0), [0]*4, TWO), 'images has masked (hidden) values'),
    ((PIXELS.transpose(0,3,1,2), [0]*4, TWO), 'give images.transpose'),
    ((torch.zeros(4,32,32,3), [0]*4, TWO), 'not a Tensor'),
    ((PIXELS, [0]*4, ('cat',)), 'classes must be two or more different names'),
    ((PIXELS, [0]*4, ('cat', 'cat')), 'classes must be two or more different names'),
    ((PIXELS, [0]*4, 2), 'classes must be two or more different names'),
    ((PIXELS, [0]*4, 'cat'), 'classes must be two or more different names'),
    ((PIXELS, [0]*4, (0, 1)), 'classes must be two or more different names'),
    ((PIXELS, [0, 1, 2, 0], TWO), 'from 0 to 1, not 0 to 2'),
    ((PIXELS, ['cat', 'cow', 'dog', 'cat'], TWO), "no class 'cow': choose from cat, dog"),
    ((PIXELS, [0]*3, TWO), '4 images need 4 labels, not 3'),
], ids=['masked', 'channels first', 'a tensor', 'one class', 'one name twice', 'a number of classes', 'a word', 'numbers for names', 'no such class', 'no such name', 'too few'])
def test_arrays_that_are_no_data_set(args, said):
    with pytest.raises(ValueError, match=re.escape(said)): Images(*args)


def test_names(): assert [p.name for p in shapes10(n_train=10, n_test=10)] == ['shapes10']*2 and shapes10(n_train=10)[0].take([1]).name == 'shapes10'


# 4. folders of pictures

def paint(folder, n=8, seed=0, size=(40, 50)):
    "Pictures of one colour with noise."
    folder.mkdir(parents=True)
    g = np.random.default_rng([seed, *folder.name.encode()])
    colour = g.integers(60, 200, 3)
    for i in range(n): Image.fromarray(np.uint8(colour + g.integers(-40, 40, (*size, 3)))).save(folder/f'{i}.png')

@pytest.fixture
def pets(tmp_path):
    "pets(test=2, n=8): a folder of two classes."
    def make(at='pets', n=8, test=2, seed=0, classes=('dog', 'cat')):
        for c in classes:
            paint(tmp_path/at/'train'/c, n, seed)
            if test: paint(tmp_path/at/'test'/c, test, seed + 1)
        return tmp_path/at
    return make


def test_a_folder(pets):
    path = pets()
    for junk in ('.DS_Store', 'train/.DS_Store', 'train/cat/._0.png', 'train/cat/Thumbs.db', '__MACOSX/x', 'readme.txt'): write(path/junk)
    with saying(): train, test = load_data(f'folder:{path}')
    assert train.classes == ('cat', 'dog') and train.name == test.name == 'folder:pets'
    assert np.bincount(train.labels).tolist() == [8, 8] and np.bincount(test.labels).tolist() == [2, 2]
    held = {c: {train.images[i].tobytes() for i in np.flatnonzero(train.labels == l)} for l, c in enumerate(train.classes)}
    assert held == {c: {data.read_picture(p).tobytes() for p in (path/'train'/c).glob('?.png')} for c in train.classes}
    again = load_data('folder:pets', data_dir=path), load_data(f'folder:{path}/', data_dir=path), picture_folder(path)
    assert {part.fingerprint() for part, _ in again} == {train.fingerprint()}


def test_a_tenth_is_set_aside(pets):
    path = pets(n=20, test=0)
    with saying('has no test: a tenth of each class, 4 pictures, is set aside'): train, test = picture_folder(path)
    assert np.bincount(train.labels).tolist() == [18, 18] and np.bincount(test.labels).tolist() == [2, 2]
    assert not {p.tobytes() for p in train.images} & {p.tobytes() for p in test.images}
    with saying('set aside'): assert picture_folder(path)[1].fingerprint() == test.fingerprint()


def test_the_first_pictures_of_a_folder_are_of_all_classes(pets):
    train, test = picture_folder(pets(n=30, test=9))
    assert train.labels.tolist() not in (sorted(train.labels), sorted(train.labels)[::-1])
    train_idx, _ = split(train.labels, limit=8)
    assert set(train.labels[train_idx]) == set(test.labels[:8]) == {0, 1}


SAID = {    # what is changed, what is said
    'one above': (lambda p: p.rename(p.parent/'x') and (p.mkdir(), (p.parent/'x').rename(p/'x')), 'the pictures were found in'),
    'small pictures': (lambda p: shutil.rmtree(p/'train'/'cat') or paint(p/'train'/'cat', 8, size=(20, 20)), 'enlarged to 32×32 (and 7 more)'),
    'a class without test pictures': (lambda p: shutil.rmtree(p/'test'/'cat'), 'has no pictures of cat'),
    'a third part': (lambda p: paint(p/'valid'/'cat'), 'only train and test are used of'),
    'a picture in train and in test': (lambda p: shutil.copy(p/'train'/'cat'/'0.png', p/'test'/'cat'/'0.png'), '1 are in train and in test: remove'),
    'a picture in two classes': (lambda p: shutil.copy(p/'train'/'cat'/'0.png', p/'train'/'dog'/'0.png'), '1 are in several classes: remove'),
    'both': (lambda p: shutil.copy(p/'train'/'cat'/'0.png', p/'test'/'dog'/'0.png'), '1 are in train and in test and 1 are in several classes'),
}

@pytest.mark.parametrize('change, said', SAID.values(), ids=SAID)
def test_what_is_said_of_a_folder(change, said, pets):
    path = pets()
    change(path)
    with saying(said): train, _ = picture_folder(path)
    assert len(train) == 16


WRONG = {   # what is changed, what the sentence says
    'a damaged picture': (lambda p: write(p/'train'/'cat'/'3.png', b'no picture'), r'train/cat/3.png cannot be read as a picture'),
    'a picture that is cut': (lambda p: write(p/'train'/'cat'/'3.png', (p/'train'/'cat'/'2.png').read_bytes()[:500]), r'train/cat/3.png'),
    'a text in a class': (lambda p: write(p/'train'/'cat'/'notes.txt'), 'notes.txt cannot be read as a picture'),
    'a class of test that train lacks': (lambda p: paint(p/'test'/'cow'), r'test/cow is no class of train: choose from cat, dog'),
    'an empty class': (lambda p: (p/'train'/'cow').mkdir(), r'train/cow is empty'),
    'an empty class in test': (lambda p: [f.unlink() for f in (p/'test'/'cat').iterdir()], r'test/cat is empty'),
    'an empty test': (lambda p: [shutil.rmtree(d) for d in (p/'test').iterdir()], r'test is empty: put pictures into'),
    'a single class': (lambda p: shutil.rmtree(p/'train'/'cat'), 'needs a folder for each of two classes or more, and has 1'),
    'no class': (lambda p: [shutil.rmtree(d) for d in (p/'train').iterdir()], 'of two classes or more, and has 0'),
    'pictures under train': (lambda p: shutil.copy(p/'train'/'cat'/'0.png', p/'train'/'0.png'), r'train/0.png lies in no class'),
    'a folder in a class': (lambda p: paint(p/'train'/'cat'/'more'), r'cat/more is a folder in a class'),
    'no train': (lambda p: (p/'train').rename(p/'training'), 'holds test, training, but no folder train'),
    'classes without train': (lambda p: [shutil.rmtree(p/'test')] + [d.rename(p/d.name) for d in (p/'train').iterdir()] + [(p/'train').rmdir()], 'holds cat, dog, but no folder train'),
    'valid, and no test': (lambda p: (p/'test').rename(p/'valid'), 'holds train and valid, but no test'),
    'Test, and no test': (lambda p: (p/'test').rename(p/'Test'), 'holds train and Test, but no test'),
    'validation, by its year': (lambda p: (p/'test').rename(p/'val2017'), 'holds train and val2017, but no test'),
    'a part under any name': (lambda p: (p/'test').rename(p/'more'), 'holds train and more, but no test'),
    'test, packed': (lambda p: [shutil.rmtree(p/'test'), write(p/'test.zip')], r'test.zip is no folder: put the test pictures into .*/test/CLASS/'),
    'test is a file': (lambda p: [shutil.rmtree(p/'test'), write(p/'test')], r'test is no folder'),
    'test is a link to nothing': (lambda p: [shutil.rmtree(p/'test'), (p/'test').symlink_to(p/'gone')], r'test is a link that leads nowhere'),
    'train is a link to nothing': (lambda p: [shutil.rmtree(p/'train'), (p/'train').symlink_to(p/'gone')], r'train is a link that leads nowhere'),
    'classes that differ in case': (lambda p: paint(p/'train'/'Cat'), "the classes 'Cat' and 'cat' look alike"),
    'accents in two ways': (lambda p: [paint(p/'train'/n) for n in ('cafe\u0301', 'caf\u00e9')], r"the classes 'cafe\\u0301' and 'caf\\xe9' look alike"),
    'a class of test in another case': (lambda p: (p/'test'/'cat').rename(p/'test'/'CAT'), "the classes 'cat' and 'CAT' look alike"),
    'too few for a tenth': (lambda p: [shutil.rmtree(p/'test'), *((p/'train'/'cat'/f'{i}.png').unlink() for i in range(3))], 'cat only 5 pictures, of which no tenth'),
    'a file': (lambda p: [shutil.rmtree(p), p.write_text('x')], 'is a file: unpack it'),
    'nothing': (lambda p: shutil.rmtree(p), 'there is no folder'),
}

@pytest.mark.parametrize('change, said', WRONG.values(), ids=WRONG)
def test_folders_that_are_no_data_set(change, said, pets):
    path = pets()
    change(path)
    with pytest.raises((ValueError, OSError), match=said) as e: load_data(f'folder:{path}')
    assert len(str(e.value).splitlines()) == 1


def test_a_name_that_is_too_long_for_a_run(pets):
    with pytest.raises(ValueError, match='has 201 bytes: give the folder one of at most 200'): load_data(f'folder:{pets("x"*201)}')
    load_data(f'folder:{pets("x"*200)}')


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems allow no such name')
@pytest.mark.parametrize('at', ['', 'train/cat'])
def test_a_name_that_is_no_utf8(at, pets):
    path = pets()
    odd = (path/at).rename((path/at).with_name('b\udce4r'))
    with pytest.raises(ValueError, match=r"the name 'b\\udce4r' in .* is not UTF-8: rename it"): load_data(f'folder:{path if at else odd}')


@pytest.mark.parametrize('part', ['train', 'test'])
def test_a_part_of_a_folder(part, pets):
    path = pets()
    with pytest.raises(ValueError, match=f'{part} is one part of a data set: name the folder around it, {re.escape(str(path))}$'): load_data(f'folder:{path/part}')


@pytest.mark.parametrize('beside', ['runs/folder-pets/checkpoints', 'notes', 'developers'])
def test_other_folders_are_no_part_of_the_data(beside, pets):
    path = pets(n=20, test=0)
    (path/beside).mkdir(parents=True)
    with saying('a tenth of each class, 4 pictures, is set aside'): picture_folder(path)


@pytest.mark.parametrize('told', ['.', '..', '../pets', '../pets/', './', '../pets '])
def test_a_folder_as_seen_from_within(told, pets, monkeypatch):
    monkeypatch.chdir(pets()/('train' if told == '..' else ''))
    assert picture_folder(told.strip())[0].name == 'folder:pets' == Recipe(dataset=f'folder:{told}').dataset


def test_two_folders_for_one(pets):
    with pytest.raises(ValueError, match='are two folders: name one'): load_data(f'folder:{pets()}', data_dir=pets('other'))


@pytest.mark.parametrize('told, kept', [('folder:/a/b', 'folder:b'), ('folder:/a/b/', 'folder:b'), ('folder:b', 'folder:b'), ('folder:../x/b', 'folder:b'), ('folder:~/b', 'folder:b'), ('cifar100', 'cifar100')])
def test_a_recipe_keeps_no_path(told, kept):
    recipe = Recipe(dataset=told)
    assert recipe.dataset == kept == Recipe(dataset=recipe.dataset).dataset and recipe.hash() == Recipe(dataset=kept).hash()


@pytest.mark.parametrize('told', ['folder:', 'folder: ', 'folder:/'])
def test_a_folder_without_a_name(told):
    with pytest.raises(ValueError, match='names no folder: give its path, such as folder:flowers'): Recipe(dataset=told)


def test_what_is_usual_for_a_folder():
    full = Recipe(dataset='folder:/a/b').filled('cuda')
    assert (full.width, full.batch_size, full.filters, full.epochs, full.variant) == (16, 32, 'zero_mean', 40, None)
    assert run_folder(full).parts[0] == 'runs' and run_folder(full).name.startswith('folder-b-strict-')


TINY = '--width 2 --epochs 1 --batch_size 4 --device cpu'.split()

@pytest.fixture
def trained(pets, tmp_path, monkeypatch):
    "A folder of pictures, and what the command made of it."
    monkeypatch.chdir(tmp_path)
    path = pets(n=12, test=3)
    assert main([*TINY, '--dataset', f'folder:{path}', '--out', 'run', '--publish', 'public']) == 0
    return path, tmp_path/'run'

def test_a_folder_from_the_command_to_the_explorers(trained, tmp_path, capsys):
    path, out = trained
    about = read_json(out/'run.json')
    assert about['data'] == about['recipe']['dataset'] == 'folder:pets' and about['classes'] == ['cat', 'dog']
    assert about['data_sha256'] == picture_folder(path)[0].fingerprint()
    for file in [*out.rglob('*'), *(tmp_path/'public').iterdir()]:
        if file.is_file(): assert str(path).encode() not in file.read_bytes(), file
    assert weights_metadata(out/'weights.safetensors')['dataset'] == 'folder:pets'
    assert main([*TINY, '--dataset', 'folder:pets', '--data_dir', str(path), '--out', 'run']) == 0       # finished: the same
    assert explain_main([str(path/'test'/'cat'/'0.png'), '--run', 'run']) == 0 and Path('0-gradcam.png').exists()
    s = subject('run', path)
    assert s.name.startswith('folder:pets, width 2, test images of') and len(s.data) == 6
    assert isinstance(mistake_explorer(s).matrix, ConfusionButtons)
    with pytest.raises(FileNotFoundError, match='there is no folder .*--data_dir'): (path.rename(tmp_path/'gone'), subject('run'))


def test_another_folder_of_the_same_name_is_not_taken_for_the_first(trained, pets, capsys):
    other = pets('elsewhere/pets', n=12, test=3, seed=7)
    assert main([*TINY, '--dataset', f'folder:{other}', '--out', 'run']) == 2
    assert 'holds a run that was trained on other data' in capsys.readouterr().err
    with pytest.raises(ValueError, match='these are not the images of run'): subject('run', other)


@pytest.mark.parametrize('again', [['--dataset', 'folder:{}'], ['--data_dir', '{}'], ['--dataset', 'folder:pets', '--data_dir', '{}']])
def test_a_folder_is_gone_on_with(again, pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = pets(n=12, test=3)
    argv = [*TINY, '--out', 'run']
    assert main([*argv, '--dataset', f'folder:{path}', '--budget_s', '1e-9']) == 130
    assert main(['--out', 'run', '--resume', '--device', 'cpu', *(a.format(path) for a in again)]) == 0


def test_a_sweep_over_two_folders(pets, tmp_path):
    tiny = dict(width=2, epochs=1, batch_size=4)
    found = sweep({name: dict(tiny, dataset=f'folder:{pets(name, n=12, seed=i)}') for i, name in enumerate(('one', 'two'))}, out=tmp_path/'sweep', devices=['cpu'])
    assert [row['recipe']['dataset'] for row in found['runs']] == ['folder:one', 'folder:two'] and not found['failed']
    assert len({read_json(tmp_path/'sweep'/f'{name}-0'/'run.json')['data_sha256'] for name in ('one', 'two')}) == 2


# 5. what a run says that it learnt from

SHAPES = shapes10(n_train=60, n_test=20)
NAMELESS = tuple(replace(part, masks=None, name='') for part in SHAPES)

def test_a_recipe_for_other_data():
    with pytest.raises(ValueError, match=r"the recipe is for cifar10, and the images are shapes10: give Recipe\(dataset='shapes10'\)"): Training(Recipe(), SHAPES[0], device='cpu')
    with pytest.raises(ValueError, match='the recipe is for cifar10'): job(Recipe(), 'never', data=SHAPES, device='cpu')
    with pytest.raises(ValueError, match='the data must be Images'): Training(Recipe(), SHAPES[0].images, device='cpu')
    assert not Path('never').exists()


def test_arrays_of_ones_own(tmp_path):
    run = job(Recipe(width=2, epochs=1, batch_size=20), tmp_path/'run', data=NAMELESS, device='cpu', progress=False)
    assert (run.metrics['data'], run.recipe.dataset) == (OWN, 'cifar10')
    assert weights_metadata(tmp_path/'run'/'weights.safetensors')['dataset'] == OWN
    assert release(run, tmp_path/'w.safetensors', NAMELESS[1])['dataset'] == OWN
    with pytest.raises(ValueError, match=r'learnt from arrays of your own: give them, subject\(run, data=\(train, test\)\)'): subject(run)
    assert subject(run, data=NAMELESS).name.startswith(f'{OWN}, width 2, test images')
    with pytest.raises(ValueError, match='these are not the images of'): subject(run, data=NAMELESS[::-1])


def test_earlier_runs_say_it_too():
    assert load_run(Path(__file__).parent/'earlier'/'schema2-finished').metrics['data'] == 'shapes10'


# 6. two classes, and a hundred

@pytest.mark.parametrize('count', [2, MANY, MANY + 1, 100])
def test_any_number_of_classes(count, tmp_path):
    g = np.random.default_rng(count)
    make = lambda n: Images(g.integers(0, 256, (n*count, 32, 32, 3), np.uint8), np.arange(n*count) % count, [f'class {i}' for i in range(count)])
    pictures = make(6), make(1)
    run = job(Recipe(width=1, epochs=1, batch_size=100), tmp_path/'run', data=pictures, device='cpu', progress=False)
    matrix = mistake_explorer(subject(run, data=pictures)).matrix
    assert isinstance(matrix, ConfusionList if count > MANY else ConfusionButtons)
    assert len(run.metrics['classes']) == count and Image.open(tmp_path/'run'/'classes.png').height < 700


def test_the_list_of_a_large_matrix_opens_cells():
    counts, opened = np.diag([3, 0, 2]), []
    counts[0,1], counts[2,0] = 1, 4
    cells = ConfusionList(counts, ['a', 'b', 'c'], (2, 0), lambda *at: opened.append(at))
    assert [name for name, _ in cells.options] == ['4 × c, called a', '1 × a, called b', '3 × a, rightly', '2 × c, rightly']
    cells.value = 0, 1
    assert opened == [(0, 1)]


# 7. a run, and the data that it knows

def flat(n, seed, classes=('a', 'b'), **more):
    "Dark and bright pictures in turn, which any network learns to tell apart."
    labels = np.arange(n) % 2
    dark = np.random.default_rng(seed).integers(0, 60, (n, 32, 32, 3))
    return Images(np.uint8(dark + 180*labels[:,None,None,None]), labels, classes, **more)

FLAT = flat(40, 0), flat(20, 1)
OTHER_WAY = Images(FLAT[1].images, 1 - FLAT[1].labels, ('b', 'a'))
QUICK = dict(dataset='shapes10', width=2, epochs=1, batch_size=5)

def quick(out, data=FLAT, asked=QUICK, **how):
    return job(asked, out, device='cpu', **(dict(data=data, progress=False, draw=False) | how))


NO_PAIR = {
    'images alone': (FLAT[0], r'data must be two Images, data=\(train, test\), not an Images'),
    'one in a tuple': (FLAT[:1], 'data must be two Images'),
    'three': ((*FLAT, FLAT[0]), 'data must be two Images'),
    'no test': ((FLAT[0], None), 'the data must be Images.*not None'),
    'arrays to test on': ((FLAT[0], FLAT[1].images), 'the data must be Images.*not a NumPy array'),
    'an empty test': ((FLAT[0], FLAT[1].take(slice(0))), 'there are no test images'),
    'a test of another set': ((FLAT[0], flat(20, 1, name='cifar10')), 'the recipe is for shapes10, and the images are cifar10'),
    'a class more': ((FLAT[0], flat(20, 1, ('a', 'b', 'c'))), "the test images have a class 'c', which the training images lack"),
    'other names': ((FLAT[0], flat(20, 1, ('x', 'y'))), "the test images have a class 'x'"),
}

@pytest.mark.parametrize('data, said', NO_PAIR.values(), ids=NO_PAIR)
def test_images_that_do_not_go_together(data, said, tmp_path):
    with pytest.raises(ValueError, match=said): quick(tmp_path/'run', data)
    assert not (tmp_path/'run').exists()


def test_classes_in_another_order_are_the_same_classes(tmp_path):
    asked = dict(QUICK, epochs=6, lr=.01)
    right = quick(tmp_path/'run', asked=asked).metrics
    with pytest.warns(UserWarning, match='renumbered by name'): again = quick(tmp_path/'again', (FLAT[0], OTHER_WAY), asked).metrics
    assert right['test_accuracy'] == again['test_accuracy'] > .9 and right['test_sha256'] == again['test_sha256'] == FLAT[1].fingerprint()
    with pytest.warns(UserWarning, match='renumbered by name'): assert len(subject(tmp_path/'run', data=(FLAT[0], OTHER_WAY)).wrong) == right['misclassified']


@pytest.mark.parametrize('data', [FLAT, tuple(part.take(slice(n)) for part, n in zip(SHAPES, (40, 20)))], ids=['own arrays', 'part of the set'])
@pytest.mark.parametrize('how', ['dict', 'Recipe'])
def test_a_run_of_other_data_is_not_handed_out_by_name(data, how, tmp_path):
    quick(tmp_path/'run', data)
    asked = QUICK if how == 'dict' else Recipe(**QUICK)
    with pytest.raises(ValueError, match='other classes than the data|trained on other data'): quick(tmp_path/'run', None, asked)
    assert quick(tmp_path/'run', None, {}, resume=True).metrics['test_reads'] == 1          # that run, whatever it learnt from


def test_a_run_of_cifar10_is_handed_out_without_its_data(tmp_path, monkeypatch):
    asked = dict(QUICK, dataset='cifar10')
    whole = flat(40, 0, name='cifar10'), flat(20, 1, name='cifar10')
    monkeypatch.setitem(data.DATASETS, 'cifar10', replace(data.DATASETS['cifar10'], sha256=whole[0].fingerprint()))
    quick(tmp_path/'run', whole, asked)
    assert quick(tmp_path/'run', None, asked).metrics['data'] == 'cifar10'                  # nothing can be fetched here


CHANGED = {     # what becomes of the pictures, what is said of a run that knew the earlier ones
    'all': (lambda p: [shutil.rmtree(p), paint(p/'train'/'rose', seed=5), paint(p/'train'/'tulip', seed=5), paint(p/'test'/'rose', 2, 6), paint(p/'test'/'tulip', 2, 6)], 'other classes than the data'),
    'those to train on': (lambda p: [shutil.rmtree(p/'train'/'cat'), paint(p/'train'/'cat', 12, 5)], 'was trained on other data'),
    'those to test on': (lambda p: [shutil.rmtree(p/'test'/'cat'), paint(p/'test'/'cat', 3, 5)], 'is tested on other data'),
}

@pytest.mark.parametrize('change, said', CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize('named', ['folder:pets', 'folder:./pets'])
def test_a_finished_run_of_pictures_that_were_replaced(change, said, named, trained, capsys):
    path, out = trained
    change(path)
    assert main([*TINY, '--dataset', named, '--out', 'run']) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match='these are not the images of'): subject('run', path)


@pytest.mark.parametrize('checkpoints', [True, False], ids=['', 'its checkpoints lost'])
@pytest.mark.parametrize('change, said', CHANGED.values(), ids=CHANGED)
def test_an_unfinished_run_of_pictures_that_were_replaced(change, said, checkpoints, pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, argv = pets(n=12, test=3), [*TINY, '--dataset', 'folder:pets', '--out', 'run']
    assert main([*argv, '--budget_s', '1e-9']) == 130
    if not checkpoints: shutil.rmtree('run/checkpoints')
    change(path)
    before = Path('run/run.json').read_bytes()
    assert main([*argv, '--resume']) == 2
    assert said in capsys.readouterr().err and Path('run/run.json').read_bytes() == before


def test_an_earlier_run_that_does_not_know_its_test_images(tmp_path):
    with pytest.raises(KeyboardInterrupt): quick(tmp_path/'run', budget_s=1e-9)
    about = read_json(tmp_path/'run'/'run.json')
    (tmp_path/'run'/'run.json').write_text(json.dumps({k: v for k, v in about.items() if k != 'test_sha256'}))
    assert quick(tmp_path/'run', resume=True).metrics['test_sha256'] == FLAT[1].fingerprint()


@pytest.mark.parametrize('part', ['train', 'test'])
def test_a_sweep_over_pictures_that_were_replaced(part, pets, tmp_path):
    path, tiny = pets(n=12), dict(width=2, epochs=1, batch_size=4)
    go = lambda: sweep({'one': dict(tiny, dataset=f'folder:{path}')}, out=tmp_path/'sweep', devices=['cpu'], read_test=True)
    first = go()
    assert go() == first
    shutil.rmtree(path/part/'cat')
    paint(path/part/'cat', 12, 5)
    before = (tmp_path/'sweep'/'sweep.json').read_bytes()
    with pytest.raises(ValueError, match="holds results of 'one' with other pictures than those in folder:"): go()
    assert (tmp_path/'sweep'/'sweep.json').read_bytes() == before


def test_a_recipe_does_not_say_where_a_folder_lies(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = pets('A/fish', n=12), pets('fish', n=12, classes=('x', 'y'))
    recipe = Recipe(dataset=f'folder:{path}', width=2, epochs=1, batch_size=4)
    for act in (lambda: quick('run', None, recipe), lambda: Stepper(recipe, 'run', 'cpu')):
        with pytest.raises(ValueError, match='keeps the name of folder:fish, not where it lies: give its path by data_dir'): act()
    assert not Path('run').exists()
    assert quick('run', None, recipe, data_dir=path).metrics['classes'] == ['cat', 'dog']
    assert quick('dict', None, dict(dataset='folder:fish', width=2, epochs=1, batch_size=4)).metrics['classes'] == ['x', 'y']


@pytest.mark.parametrize('of', ['all', 'a part', 'other pictures'])
def test_notes_are_on_the_official_test_images(of, tmp_path, monkeypatch):
    write(tmp_path/NOTES, json.dumps(dict(twins=dict(columns=['test', 'train'], rows=[[0, 5]]), labels_not_confirmed=dict(rows=[]))).encode())
    test = data._from_planes(numbers(5), np.arange(COUNT), data.CIFAR10)
    monkeypatch.setitem(data.DATASETS, 'cifar10', replace(data.DATASETS['cifar10'], test_sha256=test.fingerprint()))
    test = dict(zip(('all', 'a part', 'other pictures'), (test, test.take([3, 1, 2]), replace(test, images=255 - test.images))))[of]
    assert bool(data.notes_of('cifar10', tmp_path, test)) == (of == 'all')
    train = data._joined([data._from_planes(numbers(i), np.arange(COUNT), data.CIFAR10) for i in range(6)])
    run = quick(tmp_path/'run', (train, test), dict(QUICK, dataset='cifar10'), data_dir=tmp_path)
    assert bool(read_json(tmp_path/'run'/'report.json')['without']) == bool(subject(run, tmp_path, data=(train, test)).notes) == (of == 'all')


def test_weights_of_a_run_that_were_changed(tmp_path):
    quick(tmp_path/'parent')
    path = tmp_path/'parent'/'weights.safetensors'
    raw = bytearray(path.read_bytes()); raw[-3] ^= 1; path.write_bytes(raw)
    with pytest.raises(ValueError, match='is not the file that the run wrote'): quick(tmp_path/'child', weights=tmp_path/'parent')
    shutil.copytree(tmp_path/'parent', tmp_path/'loose'); (tmp_path/'loose'/'run.json').unlink()
    assert quick(tmp_path/'child', weights=tmp_path/'loose').metrics['head'] == 'kept'


NEARBY = {     # where pictures lie, what is said of folder:flowers in ds
    'flowers': (['ds/flowers', 'ds/roses'], None),
    'the folder itself': (['ds'], None),
    'another': (['ds/roses'], 'ds holds roses, but no flowers: name the folder that is meant'),
    'flowers without train': (['ds/roses', 'ds/flowers/x'], None),
}

@pytest.mark.parametrize('places, said', NEARBY.values(), ids=NEARBY)
def test_a_name_and_the_folder_around_it(places, said, pets, tmp_path):
    for i, place in enumerate(places): pets(place, seed=i)
    if said:
        with pytest.raises(ValueError, match=said): load_data('folder:flowers', tmp_path/'ds')
        return
    train, _ = load_data('folder:flowers', tmp_path/'ds')
    meant = next(p for p in places if p == 'ds' or 'flowers' in p)
    assert train.name == 'folder:flowers' and train.fingerprint() == picture_folder(tmp_path/meant)[0].fingerprint()


def test_a_named_folder_without_train_is_not_another(pets, tmp_path):
    pets('ds/roses'); paint(tmp_path/'ds'/'flowers'/'daisy')
    with pytest.raises(ValueError, match='ds/flowers holds daisy, but no folder train'): load_data('folder:flowers', tmp_path/'ds')


def test_two_ways_to_one_folder(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = pets('q/fl'); (tmp_path/'q'/'w').mkdir(); (tmp_path/'link').symlink_to(path)
    for told in ('folder:q/w/../fl', 'folder:./link', f'folder:{path}'): assert len(load_data(told, 'q/fl')[0]) == 16


@pytest.mark.parametrize('out', ['pets/train/cat/run', 'pets/test/run', 'pets/train'])
@pytest.mark.parametrize('again', [['--dataset', 'folder:pets'], ['--dataset', 'folder:x', '--data_dir', 'pets']])
def test_a_run_among_pictures(out, again, pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    there = listing(pets())
    assert main([*TINY, *again, '--out', out]) == 2
    assert f'{out} ' in (said := capsys.readouterr().err) and 'choose another --out' in said and listing(Path('pets')) == there
