"""Small files that are made to cost: what they would take is known before they are decoded, and said."""
import ast, struct, time, warnings, zlib
from pathlib import Path

import pytest
from PIL import Image

from cifar_resnet import pictures
from cifar_resnet.cli import explain_main
from cifar_resnet.pictures import read_picture

costly = pytest.mark.trust('hard knocks', 'pictures that cost')


def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def png(width, height, *more):
    "A grey PNG, whose pixels compress to nothing."
    rows = zlib.compressobj()
    packed = b''.join(rows.compress((b'\0' + b'\x80'*width)*min(height - top, 100_000)) for top in range(0, height, 100_000))
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + b''.join(more) + chunk(b'IDAT', packed + rows.flush()) + chunk(b'IEND', b'')

def tags(*entries): return struct.pack('<H', len(entries)) + b''.join(struct.pack('<HHII', *e) for e in entries)

def pages(n):
    "A TIFF of n pages, a pixel each."
    held = bytearray(b'II*\0' + struct.pack('<I', 8))
    for page in range(n):
        behind = len(held) + 2 + 12*8 + 4
        one = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, behind), (278, 3, 1, 1), (279, 4, 1, 1)]
        held += tags(*one) + struct.pack('<I', behind + 2 if page < n - 1 else 0) + b'\x80\0'
    return bytes(held)

def exif(n): return b'II*\0' + struct.pack('<I', 8) + tags(*((i, 2, 2**31, 2**31 - 1) for i in range(n))) + bytes(4)

def within(seconds, action):
    "What an action warns of. It must not take longer."
    begun = time.process_time()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        action()
    assert time.process_time() - begun < seconds
    return [str(w.message) for w in said]


@costly
@pytest.mark.parametrize('size', [(1, 20_000_000), (20_000_000, 1), (65_536, 1), (1, 65_536)])
def test_a_long_side_is_not_decoded(size, monkeypatch):
    monkeypatch.setattr(pictures, '_narrowed', None)                             # what would decode it
    with pytest.raises(ValueError, match=f'a side of {max(size):,} pixels is too long, at most 65,535: crop it first'):
        read_picture(png(*size))


@costly
def test_a_side_that_is_just_short_enough():
    assert any('1×65535' in words for words in within(5, lambda: read_picture(png(1, 65_535))))


@costly
@pytest.mark.parametrize('size', [(9_500, 9_500), (40_000, 40_000)])
def test_many_pixels_are_not_decoded(size, monkeypatch):
    monkeypatch.setattr(pictures, '_narrowed', None)
    big = png(1, 1).replace(struct.pack('>II', 1, 1), struct.pack('>II', *size), 1)
    big = big.replace(big[12:33], chunk(b'IHDR', big[16:29])[4:], 1)                 # its check sum
    with pytest.raises(ValueError, match='is too large: give a picture of at most 89 million pixels'): read_picture(big)


@costly
def test_the_pages_of_a_file_are_not_counted():
    few, many = (within(5, lambda: read_picture(pages(n))) for n in (2, 20_000))
    assert few == many and 'holds several pictures: only the first is looked at' in few[0]
    assert not any('several' in words for words in within(5, lambda: read_picture(pages(1))))


@costly
@pytest.mark.parametrize('n', [5_400, 65_535])
def test_tags_without_end_are_one_note(n):
    said = within(5, lambda: read_picture(png(40, 40, chunk(b'eXIf', exif(n)))))
    assert len(said) == 1 and ('damaged EXIF' in said[0] or 'odd file' in said[0])


@costly
def test_what_pillow_warns_of_is_one_note():
    entries = [(256, 3, 1, 40), (257, 3, 1, 40), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8 + 2 + 12*1008 + 4), (278, 3, 1, 40), (279, 4, 1, 1600)]
    held = b'II*\0' + struct.pack('<I', 8) + tags(*entries, *((300 + i, 2, 2**31, 2**31 - 1) for i in range(1000))) + bytes(4) + b'\x80'*1600
    said = within(5, lambda: read_picture(held))
    assert len(said) == 1 and 'is an odd file (Tag data larger than file' in said[0]


@costly
@pytest.mark.parametrize('where', ['exif_transpose', 'fit'])
def test_memory_that_is_not_there_is_not_the_pictures_fault(where, monkeypatch):
    def full(*args, **kw): raise MemoryError
    monkeypatch.setattr(pictures.ImageOps, where, full)
    with pytest.raises(MemoryError): read_picture(Image.new('RGB', (40, 40)))


SHOWN = 'explore', 'stepper', 'cli', 'page'                   # they show what they catch, in its own words
HANDED_ON = '_work', '_listen', '_submitted', '_fulfil', '__call__'     # they send it to who asked, as it is or in its own words
AFTERWARDS = '_why',                                          # what was to be read has failed for another reason

def careless(path):
    "The functions of a module that catch Exception, and would take a MemoryError for something else."
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef) or function.name in HANDED_ON + AFTERWARDS: continue
        for node in ast.walk(function):
            caught = [ast.unparse(h.type) if h.type else '' for h in getattr(node, 'handlers', ())]
            if 'Exception' in caught and 'MemoryError' not in ' '.join(caught[:caught.index('Exception')]): yield function.name

@costly
def test_no_module_takes_lack_of_memory_for_something_else():
    modules = [p for p in Path(pictures.__file__).parent.glob('*.py') if p.stem not in SHOWN]
    assert {p.stem: [*careless(p)] for p in modules} == {p.stem: [] for p in modules}
    assert [*careless(Path(pictures.__file__).parent/'stepper.py')]                     # so it does find some
