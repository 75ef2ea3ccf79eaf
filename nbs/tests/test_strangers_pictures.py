"""Pictures as strangers bring them: shown for what they are where that is sure, and one sentence where it is not.

Colours are expected by hand: from the matrices and curves of the standards, or from what a file was written to mean.
"""
import io, json, os, struct, warnings, zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from cifar_resnet.cli import explain_main, main
from cifar_resnet.pictures import read_picture
from cifar_resnet.job import explain
from cifar_resnet.model import resnet18
from cifar_resnet.recipe import Recipe
from cifar_resnet.runs import Run
from cifar_resnet.train import load_run


def rows(names, table): return pytest.mark.parametrize(names, [pytest.param(*row, id=name) for name, *row in table])

def file_of(picture, to='PNG', **options):
    file = io.BytesIO()
    picture.save(file, to, **options)
    return file.getvalue()

def flat(value, mode='RGB', size=(40, 40)): return Image.new(mode, size, value)
def pixels(values, to='TIFF', **options): return file_of(Image.fromarray(values), to, **options)
def ramp(highest, dtype): return np.linspace(0, highest, 1600).reshape(40, 40).astype(dtype)

def seen(picture):
    "What `read_picture` shows, and what it warns of."
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        return read_picture(picture), ' | '.join(str(w.message) for w in warned)

def refused(said, action, *args, **kw):
    with pytest.raises((ValueError, OSError)) as e: action(*args, **kw)
    assert said in str(e.value) and '\n' not in str(e.value), str(e.value)

def tiff(samples, *more, bits=16, photometric=1, count=1):
    "A TIFF of 40×40 pixels by hand, which may say more than Pillow writes."
    tags = {256: (3, 40), 257: (3, 40), 258: (3, bits), 259: (3, 1), 262: (3, photometric), 273: (4, 300), 277: (3, count),
            278: (3, 40), 279: (4, len(samples))} | {tag: (3, value) for tag, value in more}
    if count > 1: tags[258] = 3, 280
    entry = lambda tag: struct.pack('<HHII', tag, tags[tag][0], count if tag == 258 else 1, tags[tag][1])
    head = struct.pack('<2sHIH', b'II', 42, 8, len(tags)) + b''.join(map(entry, sorted(tags))) + bytes(4)
    return head.ljust(280, b'\0') + (struct.pack('<H', bits)*count).ljust(20, b'\0') + samples

def twelve_bits(values): return np.packbits((values[:,:,None] >> np.arange(11, -1, -1)) & 1).tobytes()


# the range of values

@rows('held, expected, said', [
    ('floats from 0 to 1', pixels(np.full((40, 40), .5, np.float32)), 128, ''),
    ('floats, all white', pixels(np.ones((40, 40), np.float32)), 255, ''),
    ('floats that are whole, to 255', pixels(ramp(255, np.uint8).astype(np.float32)), 127, 'taken for 8 bits'),
    ('int32 to 200', pixels(np.full((40, 40), 200, np.int32)), 200, 'no value above 200: they were taken for 8 bits'),
    ('16 bits, full', pixels(ramp(65535, np.uint16)), 127, ''),
    ('16 bits, a third grey', pixels(np.full((40, 40), 21845, np.uint16), 'PNG'), 85, ''),
    ('8 bits in 16', pixels(ramp(255, np.uint16), 'PNG'), 127, 'taken for 8 bits'),
    ('12 bits, and it says so', tiff(twelve_bits(np.full((40, 40), 2048)), bits=12), 128, ''),
    ('12 bits in a PGM, which says so', b'P5 40 40 4095\n' + struct.pack('>H', 2048)*1600, 128, ''),
    ('16 bits, 0 is white', tiff(struct.pack('<H', 65535)*1600, photometric=0), 0, ''),
    ('16 bits, a little more than a quarter', tiff(struct.pack('<H', 16512)*1600), 64, ''),
    ('16-bit RGB by OpenCV', cv2.imencode('.png', np.full((40, 40, 3), 0x8000, np.uint16))[1].tobytes(), 128, ''),
    ('16-bit RGB', tiff(struct.pack('<H', 0x8000)*4800, (284, 1), photometric=2, count=3), 128, ''),
    ('16-bit transparent grey', file_of(flat(30_000, 'I;16'), transparency=30_000), 255, ''),
    ('black and white', file_of(flat(1, '1'), 'TIFF'), 255, ''),
])
def test_the_range_of_values(held, expected, said):
    found, warned = seen(held)
    assert abs(found.mean() - expected) < 1.5 and said in warned and bool(said) == bool(warned), (found.mean(), warned)


@rows('held, said', [
    ('12 bits in a file of 16', pixels(ramp(4095, np.uint16)), 'go from 0 to 4095 of 65,535, and which of them is white is not sure'),
    ('14 bits in a PNG of 16', pixels(ramp(16383, np.uint16), 'PNG'), 'from 0 to 16383 of 65,535'),
    ('12 bits in RGB of 16', tiff(struct.pack('<H', 4095)*4800, (284, 1), photometric=2, count=3), 'of 65,535'),
    ('int32 beyond 8 bits', pixels(ramp(1000, np.int32)), 'from 0 to 1000, and which'),
    ('int32 below 0', pixels(ramp(255, np.int32) - 9), 'from -9 to 246'),
    ('floats below 0', pixels(ramp(1, np.float32) - .5), 'from -0.5 to 0.5'),
    ('floats beyond 1', pixels(ramp(3.5, np.float32)), 'from 0 to 3.5'),
    ('floats that are none', pixels(np.full((40, 40), np.nan, np.float32)), 'from nan to nan'),
    ('floats without end', pixels(np.full((40, 40), np.inf, np.float32)), 'from inf to inf'),
])
def test_a_range_that_is_not_sure(held, said):
    refused(said, read_picture, held)
    refused('the picture cannot be read as a picture: its values', read_picture, held)
    refused('save it with 8 bits a channel', read_picture, held)


# colours

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
fixed = lambda *numbers: b''.join(struct.pack('>i', round(n*65536)) for n in numbers)

def with_tags(profile, **tags):
    "A profile in which the content of tags is another."
    profile = bytearray(profile)
    for at in range(132, 132 + 12*struct.unpack('>I', profile[128:132])[0], 12):
        name, offset, size = struct.unpack('>4sII', profile[at:at+12])
        if (held := tags.get(name.decode())) is not None: profile[offset:offset+len(held)] = held
    return bytes(profile)

def corners(r, g, b, **more): return with_tags(SRGB, **{f'{n}XYZ': b'XYZ \0\0\0\0' + fixed(*v) for n, v in zip('rgb', (r, g, b))}, **more)

# columns as Apple's and Adobe's own profiles have them, for white D50
P3 = corners((.51512, .24120, -.00105), (.29198, .69225, .04189), (.15710, .06657, .78407))
GAMMA = b'curv\0\0\0\0\0\0\0\1\x02\x33'                                        # 2 + 51/256
ADOBE = corners((.60974, .31111, .01947), (.20528, .62567, .06087), (.14919, .06322, .74457), rTRC=GAMMA, gTRC=GAMMA, bTRC=GAMMA)

def linear(v): return np.where(v <= .04045, v/12.92, ((v + .055)/1.055)**2.4)
def curved(v): return np.where(v <= .0031308, 12.92*v, 1.055*v**(1/2.4) - .055)

def to_xyz(corners, white=(.3127, .329)):
    "RGB -> XYZ from the chromaticities of red, green and blue: the matrix of the textbook."
    xyz = np.array([[x/y, 1, (1 - x - y)/y] for x, y in corners]).T
    return xyz*np.linalg.solve(xyz, [white[0]/white[1], 1, (1 - sum(white))/white[1]])

FROM_SRGB = np.linalg.inv(to_xyz([(.64, .33), (.3, .6), (.15, .06)]))

def by_hand(colour, corners, unbend):
    light = FROM_SRGB @ to_xyz(corners) @ unbend(np.array(colour)/255)
    return 255*curved(light.clip(0, 1))

P3_CORNERS, ADOBE_CORNERS = [(.68, .32), (.265, .69), (.15, .06)], [(.64, .33), (.21, .71), (.15, .06)]
COLOUR = 200, 100, 50

def cmyk_profile():
    "Inks of which only black prints: a table of 2⁴ colours, L = 100 where K = 0, else 0."
    clut = bytes(b for inks in range(16) for b in (0 if inks & 1 else 255, 128, 128))
    table = b'mft1\0\0\0\0\4\3\2\0' + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + bytes(range(256))*4 + clut + bytes(range(256))*3
    tags = [(b'A2B0', table), (b'wtpt', b'XYZ \0\0\0\0' + fixed(.9642, 1, .8249)), (b'desc', b'desc\0\0\0\0\0\0\0\2x\0'.ljust(92, b'\0'))]
    offset, entries, held = 132 + 12*len(tags), b'', b''
    for name, content in tags:
        entries += struct.pack('>4sII', name, offset + len(held), len(content))
        held += content.ljust(-(-len(content)//4)*4, b'\0')
    head = b'\0\0\0\0lcms\2\x10\0\0prtrCMYKLab ' + bytes(12) + b'acsp' + bytes(28) + fixed(.9642, 1, .8249)
    size = 132 + len(entries) + len(held)
    return struct.pack('>I', size) + head[4:].ljust(124, b'\0') + struct.pack('>I', len(tags)) + entries + held

def chunked(*chunks, colour=COLOUR):
    info = PngImagePlugin.PngInfo()
    for name, held in chunks: info.add(name, held)
    return file_of(flat(colour), pnginfo=info)

def lab(colour):
    "L*a*b* of an sRGB colour for white D50, as bytes."
    x, y, z = np.array([[.4361, .3851, .1431], [.2225, .7169, .0606], [.0139, .0971, .7141]]) @ linear(np.array(colour)/255)/(.9642, 1, .8249)
    x, y, z = (v**(1/3) for v in (x, y, z))                                    # all above the bend
    return tuple(round(v) for v in (2.55*(116*y - 16), 128 + 500*(x - y), 128 + 200*(y - z)))

def grey_with_alpha(value, alpha):
    "A PNG of 16 bits a channel, by hand: colour type 4."
    chunk = lambda name, held: struct.pack('>I', len(held)) + name + held + struct.pack('>I', zlib.crc32(name + held))
    lines = (b'\0' + struct.pack('>HH', value, alpha)*40)*40
    head = struct.pack('>IIBBBBB', 40, 40, 16, 4, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')

def adobe_by_exif():
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 65535, 0xA005: {1: 'R03'}}
    return file_of(flat(COLOUR), 'JPEG', quality=95, exif=exif)

def premultiplied():
    "Half transparent, and its colours are already halved."
    return tiff(bytes((100, 50, 25, 128))*1600, (338, 1), (284, 1), bits=8, photometric=2, count=4)

GUESS = 'damaged or does not fit: it was left aside'
P3_SEEN, ADOBE_SEEN = by_hand(COLOUR, P3_CORNERS, linear), by_hand(COLOUR, ADOBE_CORNERS, lambda v: v**2.19921875)

@rows('held, expected, said', [
    ('Display P3 in a PNG', file_of(flat(COLOUR), icc_profile=P3), P3_SEEN, ''),
    ('Display P3 in a JPEG', file_of(flat(COLOUR), 'JPEG', quality=95, icc_profile=P3), P3_SEEN, ''),
    ('Display P3 in a WebP', file_of(flat(COLOUR), 'WEBP', lossless=True, icc_profile=P3), P3_SEEN, ''),
    ('Display P3 in a TIFF', file_of(flat(COLOUR), 'TIFF', icc_profile=P3), P3_SEEN, ''),
    ('Display P3 in a palette', file_of(flat(COLOUR).quantize(4), icc_profile=P3), P3_SEEN, ''),
    ('Display P3, half transparent', file_of(flat((*COLOUR, 128), 'RGBA'), icc_profile=P3), (P3_SEEN*128 + 255*127)/255, ''),
    ('Adobe RGB', file_of(flat(COLOUR), icc_profile=ADOBE), ADOBE_SEEN, ''),
    ('sRGB', file_of(flat(COLOUR), icc_profile=SRGB), COLOUR, ''),
    ('grey with a profile for RGB', file_of(flat(100, 'L'), icc_profile=ADOBE), by_hand([100]*3, ADOBE_CORNERS, lambda v: v**2.19921875), ''),
    ('a profile that is none', file_of(flat(COLOUR), icc_profile=b'no profile'), COLOUR, GUESS),
    ('a cut profile', file_of(flat(COLOUR), icc_profile=P3[:300]), COLOUR, GUESS),
    ('a profile for inks', file_of(flat(COLOUR), icc_profile=cmyk_profile()), COLOUR, GUESS),
    ('CMYK with its profile', file_of(flat((0, 255, 255, 0), 'CMYK'), 'TIFF', icc_profile=cmyk_profile()), (255, 255, 255), ''),
    ('CMYK with its profile, all black', file_of(flat((0, 0, 0, 255), 'CMYK'), 'TIFF', icc_profile=cmyk_profile()), (0, 0, 0), ''),
    ('CMYK without', file_of(flat((0, 255, 255, 0), 'CMYK'), 'TIFF'), (255, 0, 0), 'its colours are a guess'),
    ('LAB', file_of(flat(lab(COLOUR), 'LAB'), 'TIFF'), COLOUR, ''),
    ('a PNG that says linear', chunked((b'gAMA', struct.pack('>I', 100_000))), COLOUR, 'not sRGB (gamma 1)'),
    ('a PNG with the usual gamma', chunked((b'gAMA', struct.pack('>I', 45_455))), COLOUR, ''),
    ('a PNG that says sRGB', chunked((b'gAMA', struct.pack('>I', 100_000)), (b'sRGB', b'\0')), COLOUR, ''),
    ('a PNG with the corners of P3', chunked((b'cHRM', struct.pack('>8I', 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))), COLOUR, 'not sRGB'),
    ('Adobe RGB by EXIF alone', adobe_by_exif(), COLOUR, 'Adobe RGB, without a profile'),
    ('premultiplied', premultiplied(), (227, 177, 152), ''),                                # 100 + 127 of white, and so on
    ('a palette, half transparent', file_of(flat(COLOUR).quantize(4), transparency=bytes([128]*4)), (227, 177, 152), ''),
    ('16-bit grey with alpha', grey_with_alpha(0x4080, 0x8080), (160, 160, 160), ''),      # (64*128 + 255*127)/255
])
def test_colours(held, expected, said):
    found, warned = seen(held)
    assert np.abs(found.reshape(-1, 3).mean(0) - expected).max() < 2.5 and said in warned and bool(said) == bool(warned), (found[0,0], expected, warned)


def test_profiles_matter(): assert np.abs(P3_SEEN - COLOUR).max() > 15 and np.abs(ADOBE_SEEN - COLOUR).max() > 25


# what is no picture, or only half of one

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
def half(to): return (held := file_of(PHOTO, to))[:len(held)//2]

@rows('held, said', [
    ('nothing', b'', 'it is empty'),
    ('zeros', bytes(5000), 'nothing but zeros'),
    ('half a JPEG', half('JPEG'), 'it is JPEG, but cut off (truncated): fetch it again'),
    ('half a PNG', half('PNG'), 'it is PNG, but cut off (truncated)'),
    ('half a BMP', half('BMP'), 'it is BMP, but cut off'),
    ('half a TIFF', half('TIFF'), 'it is TIFF, but cut off'),
    ('half a GIF', half('GIF'), 'it is GIF, but cut off'),
    ('half a WebP', half('WEBP'), 'it is WEBP, but damaged, cut off, or of a rare kind'),
    ('20 bytes of a JPEG', half('JPEG')[:20], 'it is JPEG, but damaged, cut off'),
    ('floats in RGB', tiff(bytes(12)*1600, (339, 3), (284, 1), bits=32, photometric=2, count=3), 'it is TIFF, but damaged, cut off, or of a rare kind'),
    ('a web page', b'\n<!-- saved --><!DOCTYPE HTML>\n<html><body>404<svg></svg>', 'it is a web page: fetch the picture itself'),
    ('a pointer of Git LFS', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', 'git lfs pull'),
    ('HEIC', b'\0\0\0\x18ftypheic\0\0\0\0', 'it is HEIC, which is not read here: save it as JPEG or PNG'),
    ('HEIF', b'\0\0\0\x18ftypmif1\0\0\0\0', 'it is HEIC'),
    ('a film', b'\0\0\0\x18ftypisom\0\0\0\0', 'it is a video'),
    ('SVG', b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', 'it is SVG'),
    ('PSD', b'8BPS\0\1', 'it is PSD'), ('PDF', b'%PDF-1.7', 'it is PDF'), ('EPS', b'%!PS-Adobe-3.0', 'it is EPS'),
    ('a raw file of Canon', b'\0\0\0\x18ftypcrx \0\0\0\1', "it is a camera's raw file"),
    ('a raw file of Fujifilm', b'FUJIFILMCCD-RAW 0201', "it is a camera's raw file"),
    ('a raw file of Nikon, or DNG', tiff(bytes(3200), (254, 1)), 'it begins with a small preview'),
    ('JPEG XL', b'\xff\x0a\0\0', 'it is JPEG XL'), ('JPEG 2000', b'\0\0\0\x0cjP  \r\n\x87\n', 'it is JPEG 2000'),
    ('an icon', file_of(PHOTO.resize((32, 32)), 'ICO'), 'it is ICO'), ('an array', b'\x93NUMPY\1\0', 'it is a NumPy array'),
    ('an archive', b'PK\3\4\0\0', 'it is a ZIP archive'), ('a letter', b'Dear reader', 'give one of PNG, JPEG, WEBP'),
    ('a letter of BMW', b'BM, and W', 'give one of PNG, JPEG, WEBP'),
])
def test_the_reason(held, said, tmp_path):
    (tmp_path/'mine.jpg').write_bytes(held)
    refused(said, read_picture, tmp_path/'mine.jpg')
    refused('mine.jpg cannot be read as a picture: ', read_picture, tmp_path/'mine.jpg')
    refused(said, read_picture, held)


def test_what_is_not_a_file(tmp_path, monkeypatch):
    (tmp_path/'link.png').symlink_to('gone.png')
    refused('link.png is a link to a file that is not there', read_picture, tmp_path/'link.png')
    os.mkfifo(tmp_path/'pipe.png')
    refused('pipe.png is a device or a pipe: give a file', read_picture, tmp_path/'pipe.png')
    refused('Is a directory', read_picture, tmp_path)
    refused('there is no file gone.png', read_picture, 'gone.png')
    refused('https://x.org/a.png is an address: fetch it first', read_picture, 'https://x.org/a.png')
    (tmp_path/'mine.png').write_bytes(file_of(PHOTO))
    def denied(*args, **kw): raise PermissionError(13, 'Permission denied', 'mine.png')
    monkeypatch.setattr(Image, 'open', denied)
    refused('Permission denied', read_picture, tmp_path/'mine.png')


# ways of handing over a picture

WIDE = np.dstack([np.indices((48, 64)).sum(0)*2]*3).astype(np.uint8)
FILE = file_of(Image.fromarray(WIDE))

class Named(io.BytesIO): name = 7                                              # as tempfile.TemporaryFile has it

@rows('given', [
    ('bytes', FILE), ('a bytearray', bytearray(FILE)), ('a view of memory', memoryview(FILE)), ('without a name', io.BytesIO(FILE)),
    ('a number for a name', Named(FILE)), ('a picture', Image.fromarray(WIDE)), ('a picture not yet decoded', Image.open(io.BytesIO(FILE))),
    ('an array', WIDE), ('an array of grey', WIDE[...,0]), ('one channel', WIDE[...,:1]), ('with alpha', np.dstack([WIDE, WIDE[...,0]*0 + 255])),
    ('floats', WIDE/255), ('float32', (WIDE/255).astype(np.float32)), ('upside down in memory', np.ascontiguousarray(WIDE[::-1])[::-1]),
    ('16 bits', WIDE.astype(np.uint16)*257), ('int64', WIDE.astype(np.int64)),
])
def test_ways_of_handing_over(given):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert np.array_equal(read_picture(given), read_picture(FILE))
        if not isinstance(given, memoryview): assert np.array_equal(read_picture(given, 48), read_picture(FILE, 48))    # twice


@rows('given, said', [
    ('a list', [FILE], 'a picture is a path, bytes, an open file, a PIL image or an array (H,W,3), not a list'),
    ('none', None, 'not None'), ('a number', 3, 'not 3'),
    ('a tensor', torch.zeros(3, 40, 40), 'not a Tensor (3, 40, 40) of float32'),
    ('channels first', WIDE.transpose(2, 0, 1), '(3, 48, 64) of uint8: give picture.transpose(1, 2, 0)'),
    ('a batch', WIDE[None], 'not a NumPy array (1, 48, 64, 3) of uint8'), ('a row', WIDE[0,0], 'an array must be (H,W)'),
    ('nothing in it', WIDE[:0], 'an array must be'), ('no pixels', flat(0, size=(0, 5)), 'it has no pixels'),
    ('words', np.full((40, 40), 'x'), 'of numbers, not'), ('complex', WIDE*1j, 'of numbers, not'),
    ('normalised', WIDE/100. - 1, 'which of them is white is not sure'),
    ('text', io.StringIO('x'), "open it in binary mode, 'rb'"),
])
def test_what_cannot_be_handed_over(given, said): refused(said, read_picture, given)


def test_a_home_folder(tmp_path, monkeypatch):
    (tmp_path/'mine.png').write_bytes(FILE)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert np.array_equal(read_picture('~/mine.png'), read_picture(FILE))


# what is turned, long, tiny, or moves

@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation(orientation):
    "By the definition in EXIF: where the stored picture's first row and first column are in the real one."
    real = np.kron(np.arange(9).reshape(3, 3)*25 + 20, np.ones((32, 32))).astype(np.uint8)
    stored = {1: real, 2: real[:,::-1], 3: real[::-1,::-1], 4: real[::-1], 5: real.T, 6: real.T[::-1], 7: real.T[::-1,::-1], 8: real.T[:,::-1]}
    exif = Image.Exif(); exif[0x0112] = orientation
    for to, more in (('JPEG', dict(quality=95)), ('PNG', {}), ('WEBP', dict(lossless=True)), ('TIFF', {})):
        held = file_of(Image.fromarray(np.ascontiguousarray(stored[orientation])), to, exif=exif, **more)
        assert np.abs(read_picture(held, 96)[16::32,16::32,0] - real[16::32,16::32].astype(int)).max() < 6, to


@pytest.mark.parametrize('broken', [b'Exif\0\0nothing', b'Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01', b'Exif\0\0MM\0*\xff\xff\xff\xff'])
def test_broken_exif_loses_no_picture(broken):
    found, warned = seen(file_of(flat(COLOUR), 'JPEG', quality=95, exif=broken))
    assert np.abs(found.mean((0, 1)) - COLOUR).max() < 3 and 'EXIF' in warned


@rows('size, said', [
    ('4:3', (64, 48), ''), ('3:2', (60, 40), ''), ('16:9', (64, 36), 'is 64×36: 44% of it lies outside the middle square, unseen; crop it first'),
    ('tall', (40, 400), '90% of it'), ('a panorama', (480, 40), '92% of it'), ('tiny', (20, 20), 'has only 20×20 pixels'),
])
def test_what_is_not_seen(size, said):
    _, warned = seen(file_of(flat(COLOUR, size=size)))
    assert said in warned and bool(said) == bool(warned)


def test_only_the_first_of_several():
    moving = file_of(flat('red'), 'GIF', save_all=True, append_images=[flat('blue')])
    found, warned = seen(moving)
    assert tuple(found[0,0]) == (255, 0, 0) and 'holds several pictures: only the first is looked at' in warned


# the command

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')/'run'
    assert main([*'--dataset shapes10 --width 4 --epochs 1 --limit 100'.split(), '--out', str(folder)]) == 0
    return folder

@pytest.fixture
def command(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    def call(*args):
        code = explain_main([*map(str, args), '--run', str(finished)])
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())
    return call


def test_a_folder_as_it_comes_from_a_telephone(command):
    album = Path('album'); (album/'more').mkdir(parents=True)
    for name in ('one.JPG', 'two.png', 'more/three.png'): (album/name).write_bytes(FILE)
    for name in ('._one.JPG', '.hidden.png', 'notes.txt', '.DS_Store'): (album/name).write_bytes(b'\0\5\x16\7')
    (album/'IMG_1.HEIC').write_bytes(b'\0\0\0\x18ftypheic'); (album/'drawing.svg').write_bytes(b'<svg/>')
    (album/'page.jpg').write_bytes(b'<html>'); (album/'gone.png').symlink_to('nowhere.png')
    done = command(album)
    assert done.code == 2 and sorted(p.name for p in Path('album-gradcam').iterdir()) == ['one-gradcam.png', 'two-gradcam.png']
    for said in ('IMG_1.HEIC cannot be read as a picture: it is HEIC', 'drawing.svg cannot be read as a picture: it is SVG', 'it is a web page',
                 'gone.png is a link to a file that is not there', 'folders, which are not looked into: more', '4 of 6 files could not be explained'):
        assert said in done.err, done.err
    assert not any(name in done.err for name in ('._one', '.hidden', 'notes', 'DS_Store'))


@rows('names, figures', [
    ('two endings', ['x.png', 'x.jpg'], ['x.jpg-gradcam.png', 'x.png-gradcam.png']),
    ('an ending twice', ['x.png', 'x.jpg', 'x.png.png'], ['x.jpg-gradcam.png', 'x.png-gradcam.png', 'x.png.png-gradcam.png']),
    ('capitals', ['X.png', 'x.jpg', 'Y.png'], ['X.png-gradcam.png', 'Y-gradcam.png', 'x.jpg-gradcam.png']),
    ('an older figure', ['x.png', 'x-gradcam.png'], ['x-gradcam-gradcam.png', 'x-gradcam.png']),
])
def test_each_picture_has_a_figure_of_its_own(command, names, figures):
    Path('album').mkdir()
    for n, name in enumerate(names): Path('album', name).write_bytes(file_of(flat((50*n, 0, 0))))
    assert command('album').code == 0
    assert sorted(p.name for p in Path('album-gradcam').iterdir()) == figures


def test_no_figure_takes_the_place_of_another(command):
    for folder, colour in (('a', 'red'), ('b', 'blue'), ('c', 'red')):
        Path(folder).mkdir(); Path(folder, 'x.png').write_bytes(file_of(flat(colour)))
    assert command('a/x.png').code == 0
    red = Path('x-gradcam.png').read_bytes()
    done = command('b/x.png')
    assert done.code == 2 and 'x-gradcam.png is there already and is no figure of b/x.png: move it, or choose another --out' in done.err
    assert Path('x-gradcam.png').read_bytes() == red
    assert command('a/x.png', '--top', 2).code == 0 and Path('x-gradcam.png').read_bytes() != red     # again, and the figure is new
    assert command('c/x.png').code == 0                                        # the very same picture
    assert command('b/x.png', '--out', 'blue.png').code == 0


def test_a_strangers_file_is_kept(command):
    Path('x.png').write_bytes(FILE); Path('mine.png').write_bytes(FILE); Path('notes.txt').write_text('dear'); Path('folder').mkdir()
    before = {p: p.read_bytes() for p in Path().iterdir() if p.is_file()}
    for out in ('mine.png', 'notes.txt', 'folder', 'x.png'):
        done = command('x.png', '--out', out)
        assert done.code == 2 and 'choose another --out' in done.err and done.err.count('\n') == 1
    assert {p: p.read_bytes() for p in Path().iterdir() if p.is_file()} == before


def test_a_folder_again_and_one_figure_that_is_not_ours(command):
    Path('album').mkdir()
    for name, colour in (('x.png', 'red'), ('y.png', 'blue')): Path('album', name).write_bytes(file_of(flat(colour)))
    assert command('album').code == 0 and command('album').code == 0
    Path('album-gradcam/x-gradcam.png').write_bytes(FILE)
    done = command('album')
    assert done.code == 2 and 'x-gradcam.png is there already' in done.err and '1 of 2 files' in done.err
    assert Path('album-gradcam/x-gradcam.png').read_bytes() == FILE


def test_our_own_figures_are_no_pictures_of_a_folder(command):
    Path('x.png').write_bytes(FILE)
    assert command('x.png').code == 0
    done = command('.', '--out', 'figures', '--json')
    assert done.code == 0 and [row['picture'] for row in json.loads(done.out)['pictures']] == ['x.png']


# explain

def untrained(classes):
    torch.manual_seed(0)
    metrics = dict(classes=[f'class {i}' for i in range(classes)], mean=[.5]*3, std=[.25]*3, temperature=1.)
    return Run(Path('nowhere'), Recipe(dataset='shapes10', width=4), [], metrics, resnet18(width=4, num_classes=classes).eval())


@pytest.mark.parametrize('classes, top, rows', [(2, None, 2), (2, 1, 1), (10, None, 3), (100, None, 3), (100, 100, 100), (100, np.int64(4), 4)])
def test_explain_with_any_number_of_classes(classes, top, rows):
    answer, figure = explain(WIDE, untrained(classes), top)
    assert len(answer) == rows == len({row['class'] for row in answer}) and len(figure.axes) >= rows + 2
    assert figure.get_size_inches()[0] < 25


@pytest.mark.parametrize('classes, top, said', [(2, 3, '1 to 2 classes, not 3'), (10, 0, 'not 0'), (10, -1, 'not -1'), (100, 101, '1 to 100 classes'),
    (10, 2.5, 'not 2.5'), (10, '3', "not '3'"), (10, True, 'not True'), (10, [1], 'not a list')])
def test_explain_refuses_so_many(classes, top, said): refused(said, explain, WIDE, untrained(classes), top)


def test_explain_takes_a_folder_and_refuses_what_is_no_run(finished, tmp_path):
    assert explain(WIDE, str(finished))[0] == explain(WIDE, load_run(finished))[0]
    refused('run must be a finished run or its folder, not a dict', explain, WIDE, {})
    refused('run must be a finished run or its folder, not a ResNet', explain, WIDE, untrained(10).model)
    refused('holds no finished run', explain, WIDE, tmp_path)
