"Importing the package opens no socket, and needs none of the tools it is developed with."
import subprocess, sys
from pathlib import Path

import pytest

FOLDER = Path(__import__('cifar_resnet').__file__).parent
MODULES = sorted(p.stem for p in FOLDER.glob('*.py') if not p.stem.startswith('_'))
BLOCK = '''
import socket, sys
def refuse(*args, **kw): raise AssertionError(f"a socket was used at import: {args}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
sys.modules["nbdev"] = sys.modules["execnb"] = sys.modules["captum"] = sys.modules["pytest"] = None
'''


def python(code): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)


def test_every_module_imports_without_a_socket():
    assert len(MODULES) >= 12
    done = python(BLOCK + '\n'.join(f'import cifar_resnet.{m}' for m in MODULES))
    assert done.returncode == 0, done.stderr


def test_augment_does_without_albumentations():
    "Its import takes seconds, and training in batches does not need it; but wherever it is imported later, it asks no server for its newest version."
    done = python("""
import cifar_resnet.augment, os, sys
assert 'albumentations' not in sys.modules and 'cv2' not in sys.modules
assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'
cifar_resnet.augment.keyed_transforms()
assert 'albumentations' in sys.modules
""")
    assert done.returncode == 0, done.stderr


def test_the_block_works():
    done = python(BLOCK + 'import urllib.request; urllib.request.urlopen("http://127.0.0.1:9")')
    assert 'a socket was used at import' in done.stderr


@pytest.mark.parametrize('name', ['core', 'model', 'evaluate', 'gradcam'])
def test_what_is_slow_to_load_waits_until_it_is_used(name):
    "What torch, NumPy or matplotlib load by themselves is not ours to say."
    done = python(f'''
import sys, numpy, torch, torch.distributed, matplotlib.colors
before = set(sys.modules)
import cifar_resnet.{name}
print(*{{m.split('.')[0] for m in set(sys.modules) - before}})''')
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert 'cifar_resnet' in loaded
    assert not loaded & {'scipy', 'sklearn', 'albumentations', 'cv2', 'torchinfo', 'safetensors'}


def test_a_wrong_flag_is_told_before_pytorch_is_loaded():
    done = python("""
import sys
from cifar_resnet.cli import main
try: main(['--widht', '16'])
except SystemExit as stop: print(stop.code, *{'torch', 'numpy', 'matplotlib'} & set(sys.modules))""")
    assert done.stdout == '2\n', done.stdout + done.stderr


@pytest.mark.parametrize('module', ['augment', 'benchmarks'])
def test_albumentations_is_kept_from_the_network_whoever_comes_first(module):
    "By a variable that must be set before albumentations is imported."
    done = python(f"""
import os, sys
class Watch:
    def find_spec(self, name, *args):
        if name == 'albumentations': print('imported', os.environ.get('NO_ALBUMENTATIONS_UPDATE'))
os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None)
sys.meta_path.insert(0, Watch())
from cifar_resnet.{module} import plain_augmentation
plain_augmentation((.5,)*3, (.25,)*3)""")
    assert done.stdout == 'imported 1\n', done.stdout + done.stderr
