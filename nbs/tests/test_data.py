"What 03_data promises, in tables: the split, the notes on test images, Shapes-10, pictures of one's own, data sets by name."
import io, json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cifar_resnet import data
from cifar_resnet.data import (DATASETS, DISTRACTORS, NOTES, SHAPES, VARIANTS, Dataset, Images, held_out, load_data, mean_std,
                               read_picture, shapes10, split, test_notes as read_notes)
from cifar_resnet.recipe import either

NOTED = {'twins': {'columns': ['test', 'train', 'judgment'], 'rows': [[30, 7, 1], [8, 9, 2]]},
         'labels_not_confirmed': {'rows': [{'test': 4, 'given': 0, 'proposed': 8}]}}


# the split

@pytest.mark.parametrize('n, share, limit, sizes', [
    (100, .1, None, (90, 10)),
    (100, .1, 70, (70, 10)),
    (100, .1, 90, (90, 10)),
    (100, .3, None, (70, 30)),
    (2000, .1, None, (1800, 200)),
])
def test_split(n, share, limit, sizes):
    labels = np.arange(n) % 10
    train_idx, valid_idx = split(labels, share, limit)
    whole = split(labels, share)
    assert (len(train_idx), len(valid_idx)) == sizes
    assert (train_idx == whole[0][:limit]).all() and (valid_idx == whole[1][:limit]).all()
    assert sorted(np.concatenate(whole)) == list(range(n))
    assert np.bincount(labels[whole[1]]).tolist() == [round(share*n/10)]*10


def test_split_limit_too_large():
    with pytest.raises(ValueError, match='limit 91 is larger than the data: there are 90 training images'):
        split(np.arange(100) % 10, limit=91)


@pytest.mark.parametrize('limit', [None, 60])
def test_held_out(limit):
    train = shapes10(n_train=1000)[0]
    assert held_out(train, limit).fingerprint() == train.take(split(train.labels)[1][:limit]).fingerprint()


# mean and standard deviation

@pytest.mark.parametrize('pixels, mean, std', [
    ([[0]*3, [255]*3], (.5, .5, .5), (.5, .5, .5)),
    ([[51, 102, 255], [153, 204, 0]], (.4, .6, .5), (.2, .2, .5)),
    ([[7, 7, 7]], (7/255,)*3, (0, 0, 0)),
])
def test_mean_std(pixels, mean, std):
    found = mean_std(np.array([[pixels]], np.uint8))
    assert found[0] == pytest.approx(mean, abs=1e-9) and found[1] == pytest.approx(std, abs=1e-7)


# notes on test images

def test_notes_lie_where_the_variable_points(tmp_path, monkeypatch):
    monkeypatch.setenv('CIFAR10_DIR', str(tmp_path/'nowhere'))
    assert read_notes() == {}
    (tmp_path/NOTES).write_text(json.dumps(NOTED))
    monkeypatch.setenv('CIFAR10_DIR', str(tmp_path))
    assert read_notes()['twins'].tolist() == [8, 30]
    assert all(a.dtype == np.int64 for a in read_notes().values())


# Shapes-10

@pytest.fixture(scope='module', params=VARIANTS)
def drawn(request): return request.param, *shapes10(request.param, 200, 50)


def test_drawn_again(drawn):
    variant, train, test = drawn
    assert shapes10(variant, 200, 50)[0].fingerprint() == train.fingerprint()
    assert shapes10(variant, 200, 50, seed=1)[0].fingerprint() != train.fingerprint()


def test_train_and_test_share_no_picture(drawn):
    _, train, test = drawn
    assert not {p.tobytes() for p in train.images} & {p.tobytes() for p in test.images}


def test_as_many_of_each_class(drawn): assert np.bincount(drawn[1].labels).tolist() == [20]*10


def test_the_object_is_whole_and_nothing_covers_it(drawn):
    m = drawn[1].masks
    assert m['object'].sum((1,2)).min() > 20
    assert m['object'][:,[0,-1]].sum() == m['object'][:,:,[0,-1]].sum() == 0
    assert (m['object'] <= m['filled']).all() and not (m['object'] & m['distractor']).any()


def test_most_pictures_have_room_for_a_distractor():
    assert shapes10('distractors', 200, 10)[0].masks['distractor'].any((1,2)).mean() > .9


def test_two_objects():
    two = shapes10('two', 200, 10)[0]
    labels2 = two.masks['labels2']
    assert (labels2 != two.labels).all() and (labels2 >= 0).mean() > .9
    assert ((labels2 >= 0) == two.masks['object2'].any((1,2))).all()
    assert not (two.masks['filled'] & two.masks['filled2']).any()


def test_the_tag_gives_the_class_away():
    train = shapes10('shortcut', 200, 10)[0]
    assert not (train.masks['filled'] & train.masks['tag']).any()
    hues = train.images[:,3,3].astype(int)//86
    assert len(np.unique(hues, axis=0)) == 10
    assert len(np.unique(np.column_stack([hues, train.labels]), axis=0)) == 10


def test_no_such_variant():
    with pytest.raises(ValueError, match="Shapes-10 has no variant 'x': choose clean, distractors, two, shortcut"): shapes10('x')


# pictures of one's own; what is wrong with others is a table of test_hostile.py

def test_an_open_file(tmp_path):
    path = tmp_path/'wide.png'
    Image.fromarray(shapes10(n_train=10)[0].images[0]).resize((90, 60)).save(path)
    uploaded = io.BytesIO(path.read_bytes()); uploaded.name = 'wide.png'
    assert read_picture(path).shape == (32, 32, 3) and (read_picture(uploaded) == read_picture(path)).all()


def test_an_open_file_that_is_no_picture():
    uploaded = io.BytesIO(b'no picture'); uploaded.name = 'mine.png'
    with pytest.raises(ValueError, match='mine.png cannot be read'): read_picture(uploaded)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no file .*none.png'): read_picture(tmp_path/'none.png')


# data sets by name

@pytest.mark.parametrize('variant', [None, *VARIANTS])
def test_shapes10_by_name(variant):
    by_name = load_data('shapes10', variant=variant)
    assert [p.fingerprint() for p in by_name] == [p.fingerprint() for p in shapes10(variant or 'clean')]
    assert by_name[0].classes == DATASETS['shapes10'].classes


def test_cifar10_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(data, 'cifar10', lambda data_dir=None: ('loaded from', data_dir))
    assert load_data('cifar10', tmp_path) == ('loaded from', tmp_path)
    assert load_data('cifar10', tmp_path, None) == ('loaded from', tmp_path)


def test_an_entry_is_enough(monkeypatch):
    grey = Images(np.full((4,32,32,3), 99, np.uint8), np.array([0,1,0,1]), ('a','b'))
    known = ', '.join(DATASETS)
    monkeypatch.setitem(DATASETS, 'grey', Dataset(lambda data_dir, variant: (grey, replace(grey)), ('a','b')))
    assert load_data('grey')[0] is grey
    with pytest.raises(ValueError, match=f'choose {known} or grey'): load_data('gray')


def test_notes_by_name(tmp_path):
    (tmp_path/NOTES).write_text(json.dumps(NOTED))
    assert DATASETS['shapes10'].notes(tmp_path) == {}
    assert DATASETS['cifar10'].notes(tmp_path)['twins'].tolist() == [8, 30]


@pytest.mark.parametrize('name', ['mnist', '', None])
def test_no_such_data_set(name):
    with pytest.raises(ValueError) as e: load_data(name)
    assert str(e.value) == f'there is no dataset {name!r}: choose {either(DATASETS)}'


def test_a_distractor_is_no_class(): assert not set(SHAPES) & set(DISTRACTORS)
