"""Hostile and invalid input: nothing is executed, nothing is written outside its folder, nothing is accepted in silence; each gets one sentence.

A row of a table is (name, what is wrong, what the sentence must say). Where something must not run, a control shows that it does run if read carelessly.
"""
import copy, hashlib, io, json, os, pickle, re, shutil, struct, sys, tarfile, warnings, zipfile, zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageFile
from safetensors.torch import load_file, save

from cifar_resnet import data, job as job_module
from cifar_resnet.cli import explain_main, main
from cifar_resnet.data import FOLDER, Images, cifar10, read_picture, shapes10
from cifar_resnet.fetch import take_members
from cifar_resnet.job import job
from cifar_resnet.model import load_weights, resnet18, weights_file
from cifar_resnet.runs import SCHEMA, load_checkpoint, only_one, save_checkpoint, seal, write_atomic, write_history, write_json
from cifar_resnet.recipe import recipe_from
from cifar_resnet.train import Recipe, Training, load_run

TINY = '--dataset shapes10 --width 4 --epochs 1 --limit 100'.split()


def rows(*table): return pytest.mark.parametrize('what, said', [pytest.param(what, said, id=name) for name, what, said in table])

def refused(said, action, *args, kinds=(ValueError, OSError), **kw):
    "`action` raises an error of one line, which says `said`."
    with pytest.raises(kinds) as e: action(*args, **kw)
    assert said in own_words(str(e.value)) and len(str(e.value).splitlines()) == 1, str(e.value)

def own_words(text):
    "Without the folder of this test, whose name says what is wrong."
    return re.sub(r'pytest-\d+/[^/\s]+', '', text)

def tree(folder):
    "What lies in a folder: kind and permissions of each thing, where a link points, what a file holds."
    what = lambda p: os.readlink(p) if p.is_symlink() else hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else ''
    return {str(p.relative_to(folder)): (p.lstat().st_mode, what(p)) for p in folder.rglob('*')}

@contextmanager
def untouched(folder, *but):
    "Inside the block nothing in `folder` changes or appears, but for the paths named."
    before = tree(folder)
    yield
    after = tree(folder)
    assert {k: after.get(k) for k in before | after if before.get(k) != after.get(k) and k not in but} == {}


# 1. archives

HELD = np.random.default_rng(0).bytes(20_000)
ONE = {'batches/one': (len(HELD), hashlib.md5(HELD).hexdigest())}

def member(name, held=b'', kind=tarfile.REGTYPE, **more):
    m = tarfile.TarInfo(name); m.size, m.type = len(held), kind
    for k, v in more.items(): setattr(m, k, v)
    return m, held

GOOD = member('batches/one', HELD)

def tar(*members, mode='w:gz'):
    "A tar file as bytes; a size that was set by hand stays as it is, without so many bytes behind it."
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.GNU_FORMAT) as t:
        for m, held in members: t.fileobj.write(m.tobuf(tarfile.GNU_FORMAT) + held + b'\0'*(-len(held) % 512)); t.offset += 512
    return file.getvalue()

def cut(whole, share=.5): return whole[:int(len(whole)*share)]

def flipped(whole, at): return whole[:at] + bytes([whole[at] ^ 255]) + whole[at+1:]

@pytest.mark.trust('hostile', 'archives')
@rows(
    ('a name with ../', tar(GOOD, member('../evil', b'x')), '../evil would lead out'),
    ('../ inside a name', tar(GOOD, member('batches/../../evil', b'x')), 'would lead out'),
    ('an absolute name', tar(GOOD, member('/tmp/evil', b'x')), '/tmp/evil would lead out'),
    ('a backslash', tar(GOOD, member('..\\evil', b'x')), 'would lead out'),
    ('a Windows drive', tar(GOOD, member('C:/evil', b'x')), 'C:/evil would lead out'),
    ('a name of two lines', tar(GOOD, member('../evil\nAll is well', b'x')), 'would lead out'),
    ('a symbolic link', tar(GOOD, member('batches/link', kind=tarfile.SYMTYPE, linkname='/etc/passwd')), 'batches/link is neither'),
    ('a file behind a link', tar(GOOD, member('link', kind=tarfile.SYMTYPE, linkname='..'), member('link/evil', b'x')), 'link is neither'),
    ('a hard link', tar(GOOD, member('batches/hard', kind=tarfile.LNKTYPE, linkname='batches/one')), 'batches/hard is neither'),
    ('a character device', tar(GOOD, member('zero', kind=tarfile.CHRTYPE, devmajor=1, devminor=5)), 'zero is neither'),
    ('a block device', tar(GOOD, member('disk', kind=tarfile.BLKTYPE, devmajor=8)), 'disk is neither'),
    ('a pipe', tar(GOOD, member('pipe', kind=tarfile.FIFOTYPE)), 'pipe is neither'),
    ('one name twice', tar(GOOD, member('batches/one', HELD[::-1])), 'batches/one is in it twice'),
    ('one name, spelled in two ways', tar(GOOD, member('./batches//one', HELD[::-1])), 'batches/one is in it twice'),
    ('a giant size', tar(GOOD, member('giant', size=2**60)), 'giant claims 1,152,921,504,606,846,976 bytes'),
    ('a negative size', tar(GOOD, member('less', size=-512)), 'cannot be used'),
    ('a giant header', tar(GOOD, member('long', kind=tarfile.GNUTYPE_LONGNAME, size=2**62)), 'cannot be used'),
    ('the wanted is a folder', tar(member('batches/one', kind=tarfile.DIRTYPE)), 'is not a file of 20,000 bytes'),
    ('the wanted is a link', tar(member('batches/one', kind=tarfile.SYMTYPE, linkname='/etc/passwd')), 'batches/one is neither'),
    ('the wanted is not there', tar(member('batches/two', HELD)), 'has no member batches/one'),
    ('the wanted is too long', tar(member('batches/one', HELD + b'!')), 'is not a file of 20,000 bytes'),
    ('the wanted is another', tar(member('batches/one', HELD[::-1])), 'its MD5 is not'),
    ('cut inside', cut(tar(GOOD)), 'cannot be used'),
    ('cut inside, uncompressed', cut(tar(GOOD, mode='w')), 'cannot be used'),
    ('a flipped bit, gzip', flipped(tar(GOOD), 5000), 'cannot be used'),
    ('a flipped bit', flipped(tar(GOOD, mode='w'), 5000), 'one is damaged (its MD5 is not'),
    ('cut inside, xz', cut(tar(GOOD, mode='w:xz')), 'cannot be used'),
    ('a flipped bit, xz', flipped(tar(GOOD, mode='w:xz'), 5000), 'cannot be used'),
    ('a flipped bit, bzip2', flipped(tar(GOOD, mode='w:bz2'), 5000), 'cannot be used'),
    ('a zip file', b'PK\3\4' + bytes(2000), 'cannot be used'),
    ('noise', os.urandom(5000), 'cannot be used'),
    ('nothing', b'', 'cannot be used'),
)
def test_archives(what, said, tmp_path):
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'archive').write_bytes(what)
    (tmp_path/'in'/'target').mkdir()
    with untouched(tmp_path): refused(said, take_members, tmp_path/'in'/'archive', ONE, tmp_path/'in'/'target')


def test_archives_control(tmp_path):
    "The honest archive is unpacked; the worst of the others do reach outside if unpacked carelessly."
    (tmp_path/'archive').write_bytes(tar(GOOD))
    with untouched(tmp_path, 'target', 'target/one'): take_members(tmp_path/'archive', ONE, tmp_path/'target')
    assert (tmp_path/'target'/'one').read_bytes() == HELD
    (tmp_path/'careless').mkdir()
    for name, evil in (('a', [member('../a', b'x')]), ('b', [member('link', kind=tarfile.SYMTYPE, linkname='..'), member('link/b', b'x')])):
        with tarfile.open(fileobj=io.BytesIO(tar(*evil))) as t: t.extractall(tmp_path/'careless', **({'filter': 'fully_trusted'} if hasattr(tarfile, 'data_filter') else {}))
        assert (tmp_path/name).read_bytes() == b'x'


# 2. CIFAR-10 batch files

class Runs:
    "A pickle that calls `function` as it is read."
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call

def batch(**changes):
    held = {'data': np.arange(4*3072).astype(np.uint8).reshape(4, 3072), 'labels': [0, 1, 2, 9], **changes}
    return pickle.dumps({k.encode(): v for k, v in held.items() if v is not None}, 4)

@pytest.fixture
def batches(tmp_path, monkeypatch):
    "batches(held): a folder in which the hashes of all batches agree; data_batch_3 holds `held`."
    def make(held):
        folder = tmp_path/FOLDER; folder.mkdir()
        files = {name: held if name == 'data_batch_3' else batch() for name in tuple(data.BATCHES)}
        for name, b in files.items(): (folder/name).write_bytes(b)
        for name, b in files.items(): monkeypatch.setitem(data.BATCHES, name, (len(b), hashlib.md5(b).hexdigest()))
        return folder/'data_batch_3'
    return make

@pytest.mark.trust('hostile', 'CIFAR-10 batch files')
@rows(
    ('missing', lambda path: path.unlink(), 'data_batch_3 is missing'),
    ('empty', lambda path: path.write_bytes(b''), 'data_batch_3 is damaged'),
    ('cut', lambda path: path.write_bytes(cut(path.read_bytes())), 'data_batch_3 is damaged'),
    ('too long', lambda path: path.write_bytes(path.read_bytes() + b'.'), 'data_batch_3 is damaged'),
    ('a flipped bit', lambda path: path.write_bytes(flipped(path.read_bytes(), 5000)), 'data_batch_3 is damaged'),
    ('a folder', lambda path: (path.unlink(), path.mkdir()), 'data_batch_3 is damaged'),
    ('a pipe', lambda path: (path.unlink(), os.mkfifo(path)), 'data_batch_3 is damaged'),
    ('a link to nowhere', lambda path: (path.unlink(), path.symlink_to('nowhere')), 'data_batch_3 is missing'),
    ('the folder is a file', lambda path: (shutil.rmtree(path.parent), path.parent.write_text('x')), 'data_batch_1 is missing'),
)
def test_batches_whose_hash_is_wrong(what, said, batches, tmp_path):
    what(batches(batch()))
    with untouched(tmp_path): refused(said, cifar10, tmp_path)

@pytest.mark.trust('hostile', 'CIFAR-10 batch files')
@rows(
    ('a label of 10', batch(labels=[0, 1, 2, 10]), '0 to 9, not 0 to 10'),
    ('a label of -1', batch(labels=[0, 1, 2, -1]), '0 to 9, not -1 to'),
    ('labels of 1.5', batch(labels=[0, 1, 2, 1.5]), 'labels must be whole numbers'),
    ('labels of text', batch(labels=['0', '1', '2', '3']), "there is no class '0'"),
    ('labels of None', batch(labels=[None]*4), 'one is None'),
    ('labels that are one number', batch(labels=4), 'data_batch_3'),
    ('labels in a table', batch(labels=[[0], [1], [2], [3]]), 'not a column'),
    ('labels that are ragged', batch(labels=[[0], [1, 2], 3, 4]), 'data_batch_3 is no CIFAR-10 batch'),
    ('too few labels', batch(labels=[0, 1, 2]), '4 images need 4 labels, not 3'),
    ('no labels', batch(labels=None), "data_batch_3 is no CIFAR-10 batch: KeyError(b'labels')"),
    ('no data', batch(data=None), "data_batch_3 is no CIFAR-10 batch: KeyError(b'data')"),
    ('data of another shape', batch(data=np.zeros((4, 1000), np.uint8)), 'data_batch_3 is no CIFAR-10 batch: ValueError'),
    ('data of floats', batch(data=np.zeros((4, 3072))), 'images must be an array (uint8'),
    ('data of objects', batch(data=np.full((4, 3072), None)), 'images must be an array (uint8'),
    ('data that is a list', batch(data=[[0]*3072]*4), 'data_batch_3 is no CIFAR-10 batch: AttributeError'),
    ('a list', pickle.dumps([1, 2, 3], 4), 'data_batch_3 is no CIFAR-10 batch: TypeError'),
    ('noise', b'\xff' + os.urandom(500), 'data_batch_3 is no CIFAR-10 batch: UnpicklingError'),
    ('nothing', b'', 'data_batch_3 is no CIFAR-10 batch: EOFError'),
    ('ends in the middle', cut(batch()), 'data_batch_3 is no CIFAR-10 batch: UnpicklingError'),
    ('an array too large for any memory', pickle.dumps({b'data': Runs(np.ndarray, (2**60,)), b'labels': []}, 4), 'data_batch_3 is no CIFAR-10 batch'),
)
def test_batches_whose_hash_is_right(what, said, batches, tmp_path):
    batches(what)
    with untouched(tmp_path): refused(said, cifar10, tmp_path)

def test_batches_control(batches, tmp_path):
    batches(batch())
    assert [len(part) for part in cifar10(tmp_path)] == [20, 4]
    assert cifar10(tmp_path)[1].images[0,1,2].tolist() == [34]*3            # number 32*1 + 2 of each plane of 1024


# notes on test images, which lie beside the batches

NOTED = {'twins': {'columns': ['test', 'train', 'judgment'], 'rows': [[30, 7, 1], [8, 9, 2]]},
         'labels_not_confirmed': {'rows': [{'test': 4, 'given': 0, 'proposed': 8}, {'test': 9999, 'given': 3, 'proposed': 5}]}}

def notes(*path, to=None):
    "NOTED as JSON, with what lies at `path` replaced (or left out, without `to`)."
    held = copy.deepcopy(NOTED); at = held
    for key in path[:-1]: at = at[key]
    if to is None: del at[path[-1]]
    else: at[path[-1]] = to
    return json.dumps(held).encode()

DOUBT = 'labels_not_confirmed', 'rows', 0

@pytest.mark.trust('hostile', 'notes on test images')
@rows(
    ('empty', b'', 'JSONDecodeError'),
    ('cut', cut(json.dumps(NOTED).encode()), 'JSONDecodeError'),
    ('noise', b'\xff\xfe\x00' + os.urandom(500), 'Decode'),
    ('a list', b'[1, 2, 3]', 'TypeError'),
    ('nested too deep', b'['*100_000, 'RecursionError'),
    ('no twins', notes('twins'), "KeyError('twins')"),
    ('no columns', notes('twins', 'columns'), "KeyError('columns')"),
    ('other columns', notes('twins', 'columns', to=['train', 'judgment']), 'ValueError'),
    ('a short row', notes('twins', 'rows', 0, to=[]), 'IndexError'),
    ('no labels', notes('labels_not_confirmed'), "KeyError('labels_not_confirmed')"),
    ('no index', notes(*DOUBT, 'test'), "KeyError('test')"),
    ('no proposal', notes(*DOUBT, 'proposed'), "KeyError('proposed')"),
    ('twin 10000', notes('twins', 'rows', 0, to=[10_000, 7, 1]), 'whole numbers from 0 to 9999'),
    ('twin -1', notes('twins', 'rows', 0, to=[-1, 7, 1]), 'whole numbers from 0 to 9999'),
    ('index 10000', notes(*DOUBT, 'test', to=10_000), 'whole numbers from 0 to 9999'),
    ('index 4.0', notes(*DOUBT, 'test', to=4.), 'whole numbers from 0 to 9999'),
    ('index true', notes(*DOUBT, 'test', to=True), 'whole numbers from 0 to 9999'),
    ('index as text', notes(*DOUBT, 'test', to='4'), 'whole numbers from 0 to 9999'),
    ('proposal 10', notes(*DOUBT, 'proposed', to=10), 'whole numbers from 0 to 9'),
    ('doubted twice', notes(*DOUBT, 'test', to=9999), 'doubted twice'),
    ('a folder', Path.mkdir, 'not a file'),
    ('a pipe', os.mkfifo, 'not a file'),
)
def test_notes_on_test_images(what, said, tmp_path):
    path = tmp_path/'test_notes.json'
    what(path) if callable(what) else path.write_bytes(what)
    with untouched(tmp_path):
        refused(said, data.test_notes, tmp_path, kinds=ValueError)
        refused('test_notes.json holds no notes', data.test_notes, tmp_path); refused('or delete it and do without', data.test_notes, tmp_path)

def test_notes_control(tmp_path):
    (tmp_path/'test_notes.json').write_text(json.dumps(NOTED))
    assert {name: a.tolist() for name, a in data.test_notes(tmp_path).items()} == {'doubtful': [4, 9999], 'proposed': [8, 5], 'twins': [8, 30]}


# 3. pickles that would run code, in a batch and in a checkpoint

def runstring(*args):
    "NumPy's own wrapper of exec."
    from numpy.testing._private.utils import runstring
    return Runs(runstring, *args)

PICKLES = [
    ('os.mkdir', lambda marker: Runs(os.mkdir, marker), 'posix.mkdir'),
    ('os.system', lambda marker: Runs(os.system, f'mkdir "{marker}"'), 'posix.system'),
    ('eval', lambda marker: Runs(eval, f'__import__("os").mkdir({marker!r})'), 'builtins.eval'),
    ('exec', lambda marker: Runs(exec, f'import os; os.mkdir({marker!r})'), 'builtins.exec'),
    ('exec by way of NumPy', lambda marker: runstring(f'import os; os.mkdir({marker!r})', {}), 'numpy.testing._private.utils.runstring'),
    ('getattr', lambda marker: Runs(getattr, Runs(os.mkdir, marker), '__class__'), 'builtins.getattr'),
    ('a file opened', lambda marker: Runs(open, marker, 'w'), 'io.open'),
    ('map', lambda marker: Runs(list, Runs(map, os.mkdir, [marker])), 'builtins.list'),
]

@pytest.mark.trust('hostile', 'pickles that would run code: batch files')
@rows(*PICKLES)
def test_pickles_in_a_batch(what, said, batches, tmp_path):
    marker = tmp_path/'it ran'
    path = batches(batch(labels=[what(str(marker))]))
    with untouched(tmp_path): refused(f'this pickle asks for {said}, which no', cifar10, tmp_path)
    pickle.loads(path.read_bytes())                                        # the control
    assert marker.exists()

@pytest.mark.trust('hostile', 'pickles that would run code: checkpoints')
@rows(*PICKLES)
def test_pickles_in_a_checkpoint(what, said, stopped, tmp_path):
    marker = tmp_path/'it ran'
    path = save_checkpoint(tmp_path/'checkpoints', {**stopped, 'history': what(str(marker))}, 5)
    with untouched(tmp_path): refused('000000005.pt: Weights only load failed', resumed, tmp_path)
    torch.load(path, weights_only=False)                                   # the control
    assert marker.exists()


# 4. pictures

def picture(mode='RGB', size=(64, 64), colour=0, to='PNG', half=None, **options):
    "A picture as bytes: of one colour; the left half of another if `half` is given."
    image, file = Image.new(mode, size, colour), io.BytesIO()
    if half is not None: image.paste(half, (0, 0, size[0]//2, size[1]))
    image.save(file, to, **options)
    return file.getvalue()

def palette():
    "Left half transparent, right half blue, by a palette."
    image, file = Image.new('P', (64, 64), 1), io.BytesIO()
    image.putpalette([255, 0, 0, 0, 0, 255]); image.paste(0, (0, 0, 32, 64)); image.save(file, 'PNG', transparency=bytes([0, 255]))
    return file.getvalue()

def frames(to, **options): return picture(colour='red', to=to, save_all=True, append_images=[Image.new('RGB', (64, 64), c) for c in ('lime', 'blue')], **options)

def rotated(orientation):
    "Left half red, right half blue, and a note that the camera was turned."
    exif = Image.Exif(); exif[0x0112] = orientation
    return picture(colour='blue', half='red', to='JPEG', quality=95, exif=exif)

def png_header(width, height, kind=0):
    "A PNG that claims a size, and holds next to nothing."
    chunk = lambda name, held: struct.pack('>I', len(held)) + name + held + struct.pack('>I', zlib.crc32(name + held))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, kind, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')

def grey16(order):
    "A 16-bit TIFF in either order of bytes, written by hand: 64×64 pixels of 0x8040."
    held = struct.pack(f'{order}4096H', *[0x8040]*4096)
    tags = [(256, 3, 64), (257, 3, 64), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1), (278, 3, 64), (279, 4, len(held))]
    entry = lambda tag, kind, value: struct.pack(f'{order}HHI', tag, kind, 1) + (struct.pack(f'{order}HH', value, 0) if kind == 3 else struct.pack(f'{order}I', value))
    return (struct.pack(f'{order}2sHI', b'II' if order == '<' else b'MM', 42, 8) + struct.pack(f'{order}H', len(tags)) + b''.join(entry(*t) for t in tags)).ljust(200, b'\0') + held

EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n'
SVG = b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><text>&x;</text></svg>'
RED, BLUE = (255, 0, 0), (0, 0, 255)

@pytest.mark.trust('hostile', 'odd pictures, shown as they are')
@pytest.mark.parametrize('held, mean, said', [pytest.param(*row, id=name) for name, *row in [
    ('an animated GIF', frames('GIF', duration=50), RED, 'holds several pictures: only the first'),
    ('an animated PNG', frames('PNG'), RED, 'holds several pictures: only the first'),
    ('an animated WebP', frames('WEBP', lossless=True), RED, 'holds several pictures: only the first'),
    ('a TIFF of three pages', frames('TIFF'), RED, 'holds several pictures: only the first'),
    ('1×1', picture(size=(1, 1), colour=RED), RED, 'only 1×1 pixels'),
    ('50,000×1', picture(size=(50_000, 1), colour=RED), RED, 'only 50000×1 pixels|100% of it lies outside'),
    ('CMYK', picture('CMYK', colour=(0, 255, 255, 0), to='JPEG', quality=95), RED, 'no colour profile: its colours are a guess'),
    ('floats', picture('F', colour=.5, to='TIFF'), (128, 128, 128), None),
    ('a palette with alpha', palette(), (127, 127, 255), None),
    ('transparent black', picture('RGBA', colour=(0, 0, 0, 0)), (255, 255, 255), None),
    ('16-bit grey', picture('I;16', colour=0x8040), (128, 128, 128), None),
    ('16-bit grey, small end first', grey16('<'), (128, 128, 128), None),
    ('16-bit grey, big end first', grey16('>'), (128, 128, 128), None),
    ('grey with alpha', picture('LA', colour=(0, 127)), (128, 128, 128), None),
    ('black and white', picture('1', colour=0, half=1), (127, 127, 127), None),
]])
def test_odd_pictures(held, mean, said, tmp_path):
    path = tmp_path/'a picture – ü 日本.png'
    path.write_bytes(held)
    with warnings.catch_warnings(record=True) as warned, untouched(tmp_path):
        warnings.simplefilter('always')
        pixels = read_picture(path)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8 and np.abs(pixels.mean((0, 1)) - mean).max() < 4
    expected = said.split('|') if said else []
    assert len(warned) == len(expected) and all(said in str(w.message) for said, w in zip(expected, warned)), [str(w.message) for w in warned]

@pytest.mark.trust('hostile', 'odd pictures, shown as they are')
@pytest.mark.parametrize('orientation, left, top', [(1, RED, None), (3, BLUE, None), (6, None, RED), (8, None, BLUE)])
def test_turned_pictures(orientation, left, top, tmp_path):
    (tmp_path/'turned.jpg').write_bytes(rotated(orientation))
    pixels = read_picture(tmp_path/'turned.jpg')
    assert np.abs((pixels[:, :12] if left else pixels[:12]).mean((0, 1)) - (left or top)).max() < 8

@pytest.mark.trust('hostile', 'pictures')
@rows(
    ('50,000×50,000', png_header(50_000, 50_000), 'is too large: give a picture of at most 89 million pixels'),
    ('10,000×10,000', png_header(10_000, 10_000), 'is too large'),
    ('a billion pixels in a row', png_header(2**30, 1), 'is too large'),
    ('0×0', png_header(0, 0), 'cannot be read as a picture'),
    ('PNG without its pixels', png_header(500, 500), 'cannot be read as a picture'),
    ('a cut PNG', cut(picture(half='red', to='PNG', compress_level=0)), 'cannot be read as a picture'),
    ('a cut JPEG', cut(picture(half='red', to='JPEG')), 'cannot be read as a picture'),
    ('a cut GIF', cut(frames('GIF'), .2), 'cannot be read as a picture'),
    ('floats whose white is not known', picture('F', colour=1.5, to='TIFF'), 'which of them is white is not sure'),
    ('SVG', SVG, 'cannot be read as a picture'),
    ('text', b'not a picture', 'cannot be read as a picture'),
    ('HTML', b'<html><body>404 Not Found</body></html>', 'cannot be read as a picture'),
    ('a pickle', pickle.dumps([1]), 'cannot be read as a picture'),
    ('PDF', b'%PDF-1.4\n%%EOF', 'cannot be read as a picture'),
    ('EPS', EPS, 'cannot be read as a picture'),
    ('a Windows icon', picture(to='ICO'), 'cannot be read as a picture'),
    ('nothing', b'', 'cannot be read as a picture'),
    ('a folder', None, 'Is a directory'),
)
def test_pictures(what, said, tmp_path, monkeypatch):
    path, allocated = tmp_path/'picture.png', []
    path.mkdir() if what is None else path.write_bytes(what)
    if 'too large' in said: monkeypatch.setattr(ImageFile.ImageFile, 'load_prepare', lambda self: allocated.append(self.size))
    with untouched(tmp_path): refused(said, read_picture, path)
    assert not allocated

@pytest.mark.trust('hostile', 'pictures')
def test_ghostscript_is_not_started(tmp_path, monkeypatch):
    "An EPS is a program; Pillow hands it to `gs`, which here is a script that leaves a marker."
    gs, marker, path = tmp_path/'bin'/'gs', tmp_path/'it ran', tmp_path/'picture.png'
    gs.parent.mkdir(); gs.write_text(f'#!/bin/sh\nmkdir "{marker}"\n'); gs.chmod(0o755)
    path.write_bytes(EPS)
    monkeypatch.setenv('PATH', f'{gs.parent}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)
    with untouched(tmp_path): refused('cannot be read as a picture', read_picture, path)
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)
    with pytest.raises(Exception): Image.open(path).load()                 # the control: the script draws nothing, so Pillow complains
    assert marker.exists()

@pytest.mark.trust('hostile', 'pictures')
@rows(
    ('SVG', ('drawing.png', SVG), 'drawing.png cannot be read as a picture'),
    ('too large', ('large.png', png_header(50_000, 50_000)), 'large.png is too large'),
    ('a folder without pictures', ('folder.png', None), 'folder.png holds no pictures: give a file, or a folder of'),
    ('a name of two lines', ('two\nlines.png', b'x'), 'two lines.png cannot be read'),
    ('a name that is no UTF-8', (os.fsdecode(b'caf\xe9.png'), b'x'), 'caf\\udce9.png cannot be read'),
    ('a name that is none', ('gone\0.png', None), 'zero byte'),
)
def test_pictures_by_the_command(what, said, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, held = what
    if '\0' not in name: (tmp_path/name).mkdir() if held is None else (tmp_path/name).write_bytes(held)
    with untouched(tmp_path): one_line(said, explain_main, [name, '--run', str(finished)], capsys)

@pytest.mark.trust('hostile', 'odd pictures, shown as they are')
@pytest.mark.parametrize('name', ['moving.gif', 'two\nlines.gif', os.fsdecode(b'caf\xe9.gif')], ids=['a GIF', 'two lines', 'no UTF-8'])
def test_odd_pictures_by_the_command(name, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/name).write_bytes(frames('GIF'))
    with untouched(tmp_path, f'{name[:-4]}-gradcam.png'): assert explain_main([name, '--run', str(finished)]) == 0
    out, err = capsys.readouterr()
    assert 'holds several pictures' in err and err.count('\n') == 1 and out.count('%') == 3


# 5. recipes

NAN, INF, HUGE = float('nan'), float('inf'), 10**400

@pytest.mark.trust('hostile', 'recipes')
@rows(
    ('an unknown field', dict(learning_rate=.1), "no field 'learning_rate'"),
    ('a field that is no name', {3: 4}, 'no field 3'),
    ('a method', dict(__class__='x'), "no field '__class__'"),
    ('text for a number', dict(epochs='10'), "epochs must be a whole number, not '10'"),
    ('a bool for a number', dict(epochs=True), 'epochs must be a whole number, not True'),
    ('a bool for a float', dict(lr=True), 'lr must be a number, not True'),
    ('a float for a whole number', dict(width=8.), 'width must be a whole number, not 8.0'),
    ('a list for a number', dict(batch_size=[32]), 'batch_size must be a whole number, not [32]'),
    ('a dict for a number', dict(lr={'lr': 1}), 'lr must be a number'),
    ('a complex number', dict(lr=1j), 'lr must be a number'),
    ('a list for a name', dict(dataset=['cifar10']), "no dataset ['cifar10']"),
    ('a dict for a name', dict(variant={}), 'no variant {}'),
    ('a number for a name', dict(norm=3), 'there is no norm 3: choose layer, batch'),
    ('an empty name', dict(norm=''), "no norm ''"),
    ('an unknown name', dict(norm='os.system'), "no norm 'os.system'"),
    ('None for the data set', dict(dataset=None), 'no dataset None'),
    ('None for the recipe', dict(recipe=None), 'no recipe None'),
    ('None for the seed', dict(seed=None), 'seed must be a whole number, not None'),
    ('strides 1.5', dict(strides=[1.5, 2, 2, 2]), 'make no sense'),
    ('strides 1.5 in a tuple', dict(strides=(1.5, 2, 2, 2)), 'make no sense'),
    ('strides 1.0', dict(strides=[1., 2, 2, 2]), 'make no sense'),
    ('strides 1.0 in a tuple', dict(strides=(1., 2, 2, 2)), 'make no sense'),
    ('a bool among the strides', dict(strides=[True, 2, 2, 2]), 'make no sense'),
    ('a bool among the strides, in a tuple', dict(strides=(True, 2, 2, 2)), 'make no sense'),
    ('strides inside strides', dict(strides=[[1], 2, 2, 2]), 'make no sense'),
    ('strides of text', dict(strides=['1', '2', '2', '2']), 'make no sense'),
    ('no strides', dict(strides=[]), 'make no sense'),
    ('five strides', dict(strides='1,2,2,2,2'), 'make no sense'),
    ('strides 0', dict(strides='0,2,2,2'), 'each 1 or 2'),
    ('strides that are a number', dict(strides=2), 'strides 2 make no sense: give four numbers'),
    ('lr NaN', dict(lr=NAN), 'lr must be a number, not nan'),
    ('lr infinite', dict(lr=INF), 'lr must be a number, not inf'),
    ('lr 0', dict(lr=0), 'lr must be positive'),
    ('lr negative', dict(lr=-1e-3), 'lr must be positive'),
    ('lr of 400 digits', dict(lr=HUGE), 'lr must be'),
    ('epochs of 400 digits', dict(epochs=HUGE), 'epochs must be'),
    ('epochs 0', dict(epochs=0), 'epochs must be positive'),
    ('epochs absurd', dict(epochs=10**9), 'epochs must be at most 100,000'),
    ('width absurd', dict(width=10**9), 'width must be at most 2,048'),
    ('batch size absurd', dict(batch_size=2**40), 'batch_size must be at most 100,000'),
    ('seed absurd', dict(seed=2**64), 'seed must be at most'),
    ('limit negative', dict(limit=-5), 'limit must be positive'),
    ('factor above 1', dict(plateau_factor=1.5), 'plateau_factor must be below 1'),
    ('threshold NaN', dict(plateau_threshold=NAN), 'plateau_threshold must be a number'),
    ('patience of 1.5', dict(plateau_patience=1.5), 'plateau_patience must be a whole number'),
    ('decay negative', dict(weight_decay=-1), 'weight_decay must be at least 0'),
)
def test_recipes(what, said, tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, 'load_data', lambda *args: pytest.fail('a recipe that makes no sense got as far as the data'))
    with untouched(tmp_path): refused(said, lambda fields: job(fields, out=tmp_path/'run', device='cpu', progress=False), what)

@pytest.mark.trust('hostile', 'recipes')
@rows(
    ('device unknown', dict(device='gpu'), "device 'gpu' cannot be used"),
    ('device a number', dict(device=99), 'device 99 cannot be used'),
    ('device a list', dict(device=[]), 'device [] cannot be used'),
    ('seconds negative', dict(save_every_s=-1), 'save_every_s must be at least 0'),
    ('seconds NaN', dict(save_every_s=NAN), 'save_every_s must be at least 0'),
    ('seconds of text', dict(save_every_s='60'), 'save_every_s must be'),
    ('no budget', dict(budget_s=0), 'budget_s must be positive'),
    ('a budget of text', dict(budget_s='1'), 'budget_s must be positive'),
    ('backend unknown', dict(backend='warp'), "there is no backend 'warp'"),
    ('backend a number', dict(backend=3), 'there is no backend 3'),
    ('workers negative', dict(workers=-1), 'workers must be from 0 to 256'),
    ('workers absurd', dict(workers=10**6), 'workers must be from 0 to 256'),
    ('workers 1.5', dict(workers=1.5), 'workers must be'),
    ('workers of text', dict(workers='2'), 'workers must be'),
    ('more than there are', dict(recipe=dict(limit=181)), 'limit 181 is larger than the data: there are 180'),
    ('no room for one group', dict(recipe=dict(norm='group32', width=8)), "norm 'group32' needs channels"),
)
def test_options_of_a_training(what, said, tmp_path):
    options = {'device': 'cpu', **what}
    with untouched(tmp_path): refused(said, lambda: Training(recipe_from({**SMALL, **options.pop('recipe', {})}), DATA, tmp_path/'run', **options))


# 6. checkpoints whose own hash is right

DATA = Images(np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), np.uint8), np.arange(200) % 10, tuple('abcdefghij'))
SMALL = dict(dataset='shapes10', width=2, epochs=2, batch_size=60)

@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    "The state of a training after four of its six batches."
    folder = tmp_path_factory.mktemp('stopped')
    training = Training(Recipe(**SMALL), DATA, folder, 'cpu')
    for _ in range(4): training.step()
    training.save()
    return load_checkpoint(folder/'checkpoints')

def resumed(folder): return Training.resume(folder, DATA, 'cpu')      # and no further: a fused optimiser writes past the end of a tensor that is too small

def other(**recipe):
    "The state of another recipe's training, after as many batches."
    training = Training(Recipe(**{**SMALL, **recipe}), DATA, device='cpu')
    training.step()
    return lambda part: getattr(training, part).state_dict()

def inside(state, path, value):
    "The state with one value replaced, deep inside: 'opt.param_groups.0.lr'."
    *way, last = [int(k) if k.isdigit() else k for k in path.split('.')]
    for k in way: state = state[k]
    state[last] = value

def put(path, value): return lambda state: inside(state, path, value)

def without(key): return lambda state: state.pop(key)

def times(tensors, by): return {k: v*by for k, v in tensors.items()}

KEYS = 'recipe data_sha256 epoch at losses right seconds history best model averaged opt plateau scaler'.split()

@pytest.mark.trust('hostile', 'checkpoints')
@rows(
    *[(f'without {key}', without(key), f"does not fit: it lacks '{key}'") for key in KEYS],
    ('without a schema', without('schema'), 'was written by another version'),
    ('an older schema', put('schema', 1), 'was written by another version'),
    ('a schema to come', put('schema', SCHEMA + 1), 'was written by another version'),
    ('an unknown field of the recipe', put('recipe.momentum', .9), "no field 'momentum'"),
    ('a recipe that makes no sense', put('recipe.width', -2), 'width must be positive'),
    ('a recipe that is a list', put('recipe', [1]), 'does not fit'),
    ('a recipe that is None', put('recipe', None), 'does not fit'),
    ('a wider recipe', put('recipe.width', 4), 'its model is not'),
    ('another norm in the recipe', put('recipe.norm', 'none'), 'does not fit'),
    ('other data', put('data_sha256', '0'*64), 'was trained on other data'),
    ('data that is a number', put('data_sha256', 7), 'does not fit'),
    ('no weights', put('model', {}), 'does not fit'),
    ('weights None', put('model', None), 'does not fit'),
    ('weights that are a list', put('model', [1]), 'does not fit'),
    ('one weight too few', lambda s: s['model'].pop('head.bias'), 'its model is not'),
    ('one weight too many', lambda s: s['model'].update({'head.more': torch.zeros(1)}), 'its model is not'),
    ('one weight of another shape', lambda s: s['model'].update({'head.bias': torch.zeros(11)}), 'its model is not'),
    ('an average where there is none', lambda s: s.update(averaged=s['model']), 'its averaged is not'),
    ('no optimiser', put('opt', {}), 'does not fit'),
    ('the optimiser of another width', lambda s: s.update(opt=other(width=3)('opt')), 'does not fit'),
    ('the optimiser of another norm', lambda s: s.update(opt=other(norm='none')('opt')), 'does not fit'),
    ('a moment of another shape', lambda s: s['opt']['state'][0].update(exp_avg=torch.zeros(3)), 'does not fit'),
    ('no moments', put('opt.state', {}), 'does not fit'),
    ('a learning rate of NaN', put('opt.param_groups.0.lr', NAN), 'does not fit'),
    ('a learning rate of text', put('opt.param_groups.0.lr', 'fast'), 'does not fit'),
    ('no plateau', put('plateau', {}), 'does not fit'),
    ('a plateau with a method replaced', put('plateau.step', 'nothing'), 'does not fit'),
    ('an epoch beyond the end', put('epoch', 7), 'epoch'),
    ('a negative epoch', put('epoch', -1), 'epoch'),
    ('an epoch of text', put('epoch', '1'), 'epoch'),
    ('an epoch of 1.5', put('epoch', 1.5), 'epoch'),
    ('an epoch of True', put('epoch', True), 'epoch'),
    ('a batch beyond the epoch', put('at', 100), 'does not fit'),
    ('the batch after the last', lambda s: s.update(at=3, losses=torch.ones(3)), 'does not fit'),
    ('a negative batch', put('at', -1), 'does not fit'),
    ('a batch of 1.5', put('at', 1.5), 'does not fit'),
    ('a batch of text', put('at', '1'), 'does not fit'),
    ('too many losses', put('losses', torch.ones(2)), 'does not fit'),
    ('too few losses', lambda s: s.update(at=2, losses=torch.ones(1)), 'does not fit'),
    ('losses of text', put('losses', 'low'), 'does not fit'),
    ('more right than there are', put('right', 10**6), 'does not fit'),
    ('right negative', put('right', -5), 'does not fit'),
    ('right as text', put('right', 'all'), 'does not fit'),
    ('seconds of text', put('seconds', 'long'), 'does not fit'),
    ('history that is text', put('history', 'long'), 'does not fit'),
    ('history that is None', put('history', None), 'does not fit'),
    ('history too short', put('history', []), 'does not fit'),
    ('a row of history that is none', put('history.0', {}), 'does not fit'),
    ('best that is None', put('best', None), 'does not fit'),
    ('best without weights', lambda s: s['best'].pop('weights'), 'does not fit'),
    ('best of another shape', lambda s: s['best'].update(weights=other(width=3)('model')), 'does not fit'),
    ('best of an epoch to come', put('best.epoch', 99), 'does not fit'),
)
def test_checkpoints(what, said, stopped, tmp_path):
    state = copy.deepcopy(stopped)
    what(state)
    save_checkpoint(tmp_path/'checkpoints', state, 4)
    with untouched(tmp_path): refused(said, resumed, tmp_path)

@pytest.mark.trust('hostile', 'checkpoints')
@rows(
    ('weights of NaN', lambda s: s.update(model=times(s['model'], NAN)), 'its model is not'),
    ('weights of infinity', lambda s: s.update(model=times(s['model'], INF)), 'its model is not'),
    ('an optimiser of NaN', lambda s: s['opt']['state'][0].update(exp_avg=s['opt']['state'][0]['exp_avg']*NAN), 'its opt is not'),
    ('losses of NaN', put('losses', torch.tensor([NAN])), 'its losses is not'),
    ('best of NaN', lambda s: s['best'].update(weights=times(s['best']['weights'], NAN)), 'its best is not'),
)
def test_numbers_that_are_none(what, said, stopped, tmp_path):
    "Refused at once, or at the end of the epoch at the latest."
    state = copy.deepcopy(stopped)
    what(state)
    save_checkpoint(tmp_path/'checkpoints', state, 4)
    with untouched(tmp_path): refused(said, lambda: list(resumed(tmp_path)), kinds=(ValueError, FloatingPointError))

def test_checkpoints_control(stopped, tmp_path):
    save_checkpoint(tmp_path/'checkpoints', stopped, 4)
    with untouched(tmp_path): assert [row['epoch'] for row in resumed(tmp_path)] == [2]

def zipped(held):
    "A zip file as torch.save writes it, around a pickle of one's own."
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as z:
        for name, b in (('data.pkl', held), ('byteorder', b'little'), ('version', b'3\n')): z.writestr(f'archive/{name}', b)
    return file.getvalue()

@pytest.mark.trust('hostile', 'checkpoints')
@rows(
    ('a list', pickle.dumps([1], 2), 'was written by another version'),
    ('a number', pickle.dumps(7, 2), 'was written by another version'),
    ('an empty pickle', b'', '000000004.pt: '),
    ('a pickle that ends in the middle', b'\x80\x02}', '000000004.pt: '),
    ('a pickle that takes from nothing', b'\x80\x020.', '000000004.pt: '),
    ('an unknown opcode', b'\x80\x02\xff.', '000000004.pt: '),
    ('a storage that is not in the file', b'\x80\x02(X\x07\x00\x00\x00storagetQ.', '000000004.pt: '),
)
def test_pickles_of_our_own(what, said, tmp_path):
    held, folder = zipped(what), tmp_path/'checkpoints'
    folder.mkdir()
    (folder/'000000004.pt').write_bytes(held)
    (folder/'000000004.sha256').write_text(hashlib.sha256(held).hexdigest())
    with untouched(tmp_path): refused(said, resumed, tmp_path)

@pytest.mark.trust('hostile', 'checkpoints')
@rows(
    ('no hash', lambda pt, sha: sha.unlink(), '000000004.pt: no SHA-256 is noted beside it'),
    ('the hash of another', lambda pt, sha: sha.write_text('0'*64), 'its bytes do not have the SHA-256'),
    ('an empty hash', lambda pt, sha: sha.write_text(''), 'its bytes do not have the SHA-256'),
    ('a hash of noise', lambda pt, sha: sha.write_bytes(b'\xff'*64), "000000004.pt: 'utf-8' codec"),
    ('a hash that is a folder', lambda pt, sha: (sha.unlink(), sha.mkdir()), '000000004.pt: [Errno 21]'),
    ('a flipped bit', lambda pt, sha: pt.write_bytes(flipped(pt.read_bytes(), 9000)), 'its bytes do not have the SHA-256'),
    ('cut', lambda pt, sha: pt.write_bytes(cut(pt.read_bytes())), 'its bytes do not have the SHA-256'),
    ('a folder', lambda pt, sha: (pt.unlink(), pt.mkdir()), '000000004.pt: [Errno 21]'),
    ('no checkpoint', lambda pt, sha: pt.unlink(), 'there is none'),
    ('the folder is a file', lambda pt, sha: (shutil.rmtree(pt.parent), pt.parent.write_text('x')), 'no usable checkpoint'),
)
def test_files_of_checkpoints(what, said, stopped, tmp_path):
    pt = save_checkpoint(tmp_path/'checkpoints', stopped, 4)
    what(pt, pt.with_suffix('.sha256'))
    with untouched(tmp_path): refused(said, resumed, tmp_path)

@pytest.mark.trust('hostile', 'checkpoints')
@pytest.mark.parametrize('strangers', [('999999998.pt', '999999999.pt'), ('model.pt', 'notes.sha256', 'zebra.pt')], ids=['damaged ones of later batches', 'files of another kind'])
def test_a_new_checkpoint_stays(strangers, stopped, tmp_path):
    "What else lies in the folder neither drives out the checkpoint just written nor hides it."
    (tmp_path/'checkpoints').mkdir()
    for name in strangers: (tmp_path/'checkpoints'/name).write_text('x')
    path = save_checkpoint(tmp_path/'checkpoints', stopped, 4)
    assert path.exists() and path.with_suffix('.sha256').exists()
    if 'zebra.pt' in strangers: assert all((tmp_path/'checkpoints'/name).exists() for name in strangers)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert Training.resume(tmp_path, DATA, 'cpu').at == stopped['at']


# 7. run folders

def one_line(said, command, argv, capsys):
    "The command ends with code 2 and one line that says `said`."
    try: code = command(argv)
    except SystemExit as stop: code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and said in own_words(err) and err.count('\n') == 1 and not out, out + err

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp('finished')/'run'
    assert main([*TINY, '--out', str(out)]) == 0
    return out

@pytest.fixture
def run(finished, tmp_path): return shutil.copytree(finished, tmp_path/'run')

@pytest.fixture(scope='module')
def drawn(): return shapes10()

@pytest.fixture
def quick(monkeypatch, drawn): monkeypatch.setattr(data, 'shapes10', lambda variant: drawn)      # the data are drawn once

def forged_seal(about):
    "As `seal` has it, also of what `seal` refuses."
    fields = {k: v for k, v in about.items() if k != 'seal'}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

def rewrite(sealed=False, **changes):
    "Change fields of run.json (... removes one), and seal it anew if wanted: the seal is no secret."
    def change(run):
        about = {k: v for k, v in {**json.loads((run/'run.json').read_text()), **changes}.items() if v is not ...}
        if sealed: about['seal'] = forged_seal(about)
        (run/'run.json').write_text(json.dumps(about))
    return change

def write(name, held): return lambda run: (run/name).write_bytes(held)

def recipe_with(**changes):
    def change(run): rewrite(recipe={**json.loads((run/'run.json').read_text())['recipe'], **changes})(run)
    return change

OTHERS = weights_file(resnet18(width=4))          # weights of the right shape, by another training

DAMAGED = [
    ('no JSON', write('run.json', b'{"schema": 1,'), 'run.json is damaged'),
    ('a list', write('run.json', b'[1]'), 'run.json is damaged (it holds no fields)'),
    ('a number', write('run.json', b'1'), 'run.json is damaged (it holds no fields)'),
    ('nested ever deeper', write('run.json', b'['*100_000), 'run.json is damaged'),
    ('no UTF-8', write('run.json', b'\xff\xfe{}'), 'run.json is damaged'),
    ('a number of 10,000 digits', write('run.json', b'{"schema": ' + b'9'*10_000 + b'}'), 'run.json is damaged'),
    ('run.json is a folder', lambda run: ((run/'run.json').unlink(), (run/'run.json').mkdir()), 'Is a directory'),
    ('no schema', rewrite(schema=...), "no field 'schema'"),
    ('a later schema', rewrite(schema=SCHEMA + 1), f'written by another version of this package (schema {SCHEMA + 1}'),
    ('no word on whether it is finished', rewrite(finished=...), "no field 'finished'"),
    ('finished in words', rewrite(finished='yes'), "its finished cannot be 'yes'"),
    ('no temperature', rewrite(temperature=...), "no field 'temperature'"),
    ('a temperature of text', rewrite(temperature='warm'), "its temperature cannot be 'warm'"),
    ('a count of true', rewrite(parameters=True), 'its parameters cannot be True'),
    ('classes as one word', rewrite(classes='disc'), "its classes cannot be 'disc'"),
    ('no recipe', rewrite(recipe=None), 'its recipe cannot be None'),
    ('an unknown field of the recipe', recipe_with(momentum=.9), 'it was changed after the run had sealed it'),
    ('a better accuracy', rewrite(test_accuracy=.99), 'it was changed after the run had sealed it'),
    ('no seal', rewrite(seal=...), "no field 'seal'"),
    ('another seal', rewrite(seal='0'*64), 'it was changed after the run had sealed it'),
    ('weights of another run', write('weights.safetensors', OTHERS), 'weights.safetensors is not the file that the run wrote'),
    ('an empty file of weights', write('weights.safetensors', b''), 'weights.safetensors is not the file that the run wrote'),
    ('a header of weights that claims the whole memory', write('weights.safetensors', b'\xff'*7 + b'\x7f{}'), 'weights.safetensors is not the file'),
    ('a history that was improved', lambda run: (run/'history.csv').write_text((run/'history.csv').read_text().replace(',0.', ',0.0')), 'history.csv is not the file'),
    ('another split', write('split.npz', b'x'), 'split.npz is not the file'),
    ('other logits', write('logits.safetensors', b'x'), 'logits.safetensors is not the file'),
]

@pytest.mark.trust('hostile', 'run folders')
@rows(*DAMAGED)
def test_damaged_runs(what, said, run, tmp_path, capsys):
    what(run)
    with untouched(tmp_path):
        refused(said, load_run, run)
        one_line(said, main, [*TINY, '--out', str(run)], capsys)

def sealed_file(name, held):
    "Replace a file and enter its hash into run.json."
    def change(run):
        write(name, held)(run)
        files = json.loads((run/'run.json').read_text())['files']
        rewrite(True, files={**files, name: hashlib.sha256(held).hexdigest()})(run)
    return change

def tensors(metadata=None, **t): return save(t, metadata)

CLAIM = dict(norm='"layer"', strides='[1,2,2,2]', width='4', num_classes='10')

@pytest.mark.trust('hostile', 'run folders, sealed by a forger')
@rows(
    ('one class', rewrite(True, classes=['disc']), 'classes'),
    ('classes that are numbers', rewrite(True, classes=list(range(10))), 'classes'),
    ('no mean', rewrite(True, mean=[]), 'mean'),
    ('a mean of text', rewrite(True, mean=['a', 'b', 'c']), 'mean'),
    ('a mean of NaN', rewrite(True, mean=[NAN]*3), 'NaN is no finite number'),
    ('a deviation of 0', rewrite(True, std=[0., 0., 0.]), 'std'),
    ('a temperature of 0', rewrite(True, temperature=0.), 'temperature'),
    ('a temperature of NaN', rewrite(True, temperature=NAN), 'NaN is no finite number'),
    ('no hashes of files', rewrite(True, files={}), 'files'),
    ('a file outside', rewrite(True, files={'../../outside': '0'*64}), 'files'),
    ('a hash that is a number', rewrite(True, files={'weights.safetensors': 7}), 'weights.safetensors'),
    ('a history of text', sealed_file('history.csv', b'epoch,lr\n1,2\n'), 'history.csv is damaged'),
    ('a history that is no UTF-8', sealed_file('history.csv', b'\xff\xfe'), 'history.csv is damaged'),
    ('weights of noise', sealed_file('weights.safetensors', b'garbage'), 'weights.safetensors does not hold the weights'),
    ('a pickle for weights', sealed_file('weights.safetensors', pickle.dumps(Runs(os.mkdir, 'it ran'))), 'weights.safetensors does not hold the weights'),
    ('weights without a description', sealed_file('weights.safetensors', tensors(w=torch.zeros(1))), 'weights.safetensors does not hold the weights'),
    ('weights of nothing', sealed_file('weights.safetensors', tensors(CLAIM, w=torch.zeros(1))), 'weights.safetensors does not hold the weights'),
    ('a norm that there is not', sealed_file('weights.safetensors', tensors({**CLAIM, 'norm': '"eval"'}, w=torch.zeros(1))), 'weights.safetensors does not hold the weights'),
    ('a description nested ever deeper', sealed_file('weights.safetensors', tensors({**CLAIM, 'norm': '['*100_000}, w=torch.zeros(1))), 'does not hold the weights'),
    ('a width beyond any memory', sealed_file('weights.safetensors', tensors({**CLAIM, 'width': str(2**60)}, w=torch.zeros(1))), 'does not hold the weights'),
    ('weights of NaN', sealed_file('weights.safetensors', save(times(resnet18(width=4).state_dict(), NAN), CLAIM)), 'weights.safetensors'),
)
def test_forged_runs(what, said, run, finished, tmp_path, monkeypatch, capsys):
    what(run)
    monkeypatch.chdir(tmp_path)
    with untouched(tmp_path):
        refused(said, load_run, run)
        one_line(said, main, [*TINY, '--out', str(run)], capsys)
        one_line(said, explain_main, [str(finished/'curves.png'), '--run', str(run)], capsys)

@pytest.mark.trust('hostile', 'run folders, sealed by a forger')
def test_weights_are_not_built_on_their_word(tmp_path, monkeypatch):
    "A file of 300 bytes that claims a model of 100 million weights is refused before they are made."
    made, path = [], tmp_path/'weights.safetensors'
    monkeypatch.setattr(torch.nn.init, 'kaiming_uniform_', lambda t, *args, **kw: made.append(0 if t.is_meta else t.numel()))
    path.write_bytes(tensors({**CLAIM, 'width': '192'}, w=torch.zeros(1)))
    refused('does not hold the weights', load_weights, path)
    assert sum(made) < 10**6

def unfinished(run): rewrite(finished=False)(run)

def stored(**changes):
    def change(run):
        unfinished(run)
        held = {**load_file(run/'logits.safetensors'), **changes}
        (run/'logits.safetensors').write_bytes(save({k: v for k, v in held.items() if v is not ...}))
    return change

def after(*steps): return lambda run: [step(run) for step in steps]

@pytest.mark.trust('hostile', 'run folders, to be resumed')
@rows(
    ('an unknown field of the recipe', after(unfinished, recipe_with(momentum=.9)), "no field 'momentum'"),
    ('epochs of 400 digits', after(unfinished, recipe_with(epochs=HUGE)), 'epochs must be'),
    ('a recipe of one field', after(unfinished, rewrite(recipe=dict(dataset='shapes10'))), 'recipe'),
    ('resumed at a number', after(unfinished, rewrite(resumed_at=7)), 'its resumed_at cannot be 7'),
    ('no classes', after(unfinished, rewrite(classes=[])), 'classes'),
    ('no mean', after(unfinished, rewrite(mean=[])), 'mean'),
    ('logits of noise', after(unfinished, write('logits.safetensors', b'garbage')), 'logits.safetensors is damaged'),
    ('logits without labels', stored(held_out_labels=...), 'logits.safetensors'),
    ('logits of too few images', stored(held_out=torch.zeros(3, 10)), 'logits.safetensors'),
    ('logits of two classes', stored(test=torch.zeros(100, 2)), 'logits.safetensors'),
    ('logits of NaN', stored(held_out=torch.full((100, 10), NAN)), 'logits.safetensors'),
    ('labels of 10', stored(held_out_labels=torch.full((100,), 10)), 'logits.safetensors'),
    ('labels of floats', stored(held_out_labels=torch.full((100,), .5)), 'logits.safetensors'),
    ('weights of noise', after(unfinished, write('weights.safetensors', b'garbage')), 'weights.safetensors'),
    ('checkpoints are a file', after(unfinished, lambda run: (shutil.rmtree(run/'checkpoints'), write('checkpoints', b'x')(run))), 'File exists'),
    ('checkpoints lead into a file', after(unfinished, lambda run: (shutil.rmtree(run/'checkpoints'), (run/'checkpoints').symlink_to('run.json'))), 'File exists'),
)
def test_unfinished_runs(what, said, run, tmp_path, capsys, quick):
    what(run)
    kept = {name: (run/name).read_bytes() for name in ('logits.safetensors', 'weights.safetensors')}
    def resume(argv):
        code = main(argv)
        print(*(line for line in capsys.readouterr().err.splitlines() if line), sep='\n', file=sys.stderr)
        return code
    with untouched(tmp_path, *(f'run/{name}' for name in ('run.json', 'history.csv', 'checkpoints/.lock'))): one_line(said, resume, ['--out', str(run), '--resume'], capsys)
    assert kept == {name: (run/name).read_bytes() for name in kept} and not json.loads((run/'run.json').read_text())['finished']

def test_unfinished_control(run, capsys, quick):
    unfinished(run)
    assert main(['--out', str(run), '--resume']) == 0 and json.loads((run/'run.json').read_text())['finished']

def unpack(folder):
    archive = folder.parent/'archive'; archive.write_bytes(tar(GOOD))
    take_members(archive, ONE, folder)

def lock(folder):
    with only_one(folder): pass

@pytest.mark.trust('hostile', 'links planted in a folder')
@pytest.mark.parametrize('link, write', [
    ('run.json.part', lambda folder: write_json(folder/'run.json', {})), ('history.csv.part', lambda folder: write_history(folder/'history.csv', [])),
    ('curves.png.part', lambda folder: write_atomic(folder/'curves.png', b'x')), ('curves.png', lambda folder: write_atomic(folder/'curves.png', b'x')),
    ('000000004.pt.part', lambda folder: save_checkpoint(folder, {}, 4)), ('000000004.sha256.part', lambda folder: save_checkpoint(folder, {}, 4)),
    ('000000004.pt', lambda folder: save_checkpoint(folder, {}, 4)), ('000000001.pt', lambda folder: [save_checkpoint(folder, {}, i) for i in (4, 5)]),
    ('.lock', lock), ('one', unpack), ('one.part', unpack)], ids=lambda link: link if isinstance(link, str) else '')
@pytest.mark.parametrize('there', [True, False], ids=['to a file', 'to nowhere'])
def test_links_out_of_a_folder(link, write, there, tmp_path):
    "A link in the folder leads to a file outside, which is neither written nor made nor removed. (To refuse is as good as to replace the link.)"
    outside, folder = tmp_path/'outside', tmp_path/'folder'
    folder.mkdir(); (folder/link).symlink_to(outside)
    if there: outside.write_text('dear to me')
    with suppress(OSError, ValueError): write(folder)
    assert outside.exists() == there and (not there or outside.read_text() == 'dear to me')

@pytest.mark.trust('hostile', 'places')
@rows(
    ('--out of nobody', (main, [*TINY, '--out', '~nosuchuser/x']), 'no home folder ~nosuchuser'),
    ('--data_dir of nobody', (main, ['--data_dir', '~nosuchuser/x']), 'no home folder ~nosuchuser'),
    ('--run of nobody', (explain_main, ['x.png', '--run', '~nosuchuser/x']), 'no home folder ~nosuchuser'),
    ('$CIFAR10_DIR of nobody', (main, []), 'nosuchuser'),
    ('--out a file', (main, [*TINY, '--out', 'file']), 'file exists and holds something else'),
    ('--out below a file', (main, [*TINY, '--out', 'file/run']), 'file/run'),
    ('--out with a null', (main, [*TINY, '--out', 'a\0b']), 'zero byte'),
    ('--out too long', (main, [*TINY, '--out', 'x'*300]), 'name too long'),
    ('--out a full folder', (main, [*TINY, '--out', '.']), 'exists and holds something else'),
    ('--publish a file', (main, [*TINY, '--publish', 'file']), 'file: File exists'),
    ('--data_dir a file', (main, ['--data_dir', 'file']), 'file is not a folder'),
    ('--run a file', (explain_main, ['file', '--run', 'file']), 'holds no finished run'),
)
def test_places(what, said, tmp_path, monkeypatch, capsys, quick):
    command, argv = what
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CIFAR10_DIR', '~nosuchuser/x')
    (tmp_path/'file').write_text('x')
    with untouched(tmp_path): one_line(said, command, argv, capsys)

@pytest.mark.trust('hostile', 'places')
@pytest.mark.parametrize('action', [lambda at: load_run(at), lambda at: job({}, out=at), lambda at: cifar10(at)], ids=['load_run', 'job', 'cifar10'])
def test_folders_of_nobody(action, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with untouched(tmp_path): refused('nosuchuser', action, '~nosuchuser/x')


# 8. labels and arrays

PIXELS, LABELS = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4)

@pytest.mark.trust('hostile', 'labels and arrays')
@rows(
    ('images of floats', (PIXELS/255., LABELS), 'not float64, 4×32×32×3'),
    ('images of whole numbers', (PIXELS.astype(int), LABELS), 'not int64'),
    ('channels first', (PIXELS.reshape(4, 3, 32, 32), LABELS), 'not uint8, 4×3×32×32'),
    ('grey images', (PIXELS[..., 0], LABELS), 'not uint8, 4×32×32'),
    ('images of 28×28', (PIXELS[:, :28, :28], LABELS), 'not uint8, 4×28×28×3'),
    ('images with alpha', (np.zeros((4, 32, 32, 4), np.uint8), LABELS), 'not uint8, 4×32×32×4'),
    ('more images than labels', (PIXELS, LABELS[:3]), '4 images need 4 labels, not 3'),
    ('more labels than images', (PIXELS[:3], LABELS), '3 images need 3 labels, not 4'),
    ('a label of 10', (PIXELS, LABELS + 7), 'from 0 to 9, not 7 to 10'),
    ('a label of -1', (PIXELS, LABELS - 1), 'from 0 to 9, not -1 to 2'),
    ('labels of halves', (PIXELS, LABELS*.5), 'labels must be whole numbers'),
    ('labels of NaN', (PIXELS, LABELS*NAN), 'labels must be whole numbers'),
    ('labels of true and false', (PIXELS, LABELS > 1), 'labels that are true or false'),
    ('labels of text', (PIXELS, LABELS.astype(str)), "there is no class '0'"),
    ('labels of objects', (PIXELS, np.array([None]*4)), 'one is None'),
    ('labels in a column', (PIXELS, LABELS[:, None]), 'labels'),
    ('one-hot labels of nine classes', (PIXELS, np.eye(9, dtype=int)[LABELS]), '9 columns for 10 classes'),
    ('one label for all', (PIXELS, np.array(3)), 'labels'),
    ('images in a list', (PIXELS.tolist(), LABELS), 'images'),
    ('images None', (None, LABELS), 'images'),
)
def test_labels_and_arrays(what, said): refused(said, Images, *what, data.CIFAR10_CLASSES)
