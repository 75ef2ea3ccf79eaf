"One line to load: torch.hub with nothing but PyTorch and safetensors, the folder of the Hugging Face hub, torch.export."
import importlib.util, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_resnet.model import load_weights, resnet18, shipped_weights, weights_metadata
from cifar_resnet.pictures import read_picture

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(p.stem for p in (ROOT/'cifar_resnet'/'weights').glob('*.safetensors'))
REFUSED = ('numpy PIL torchvision albumentations cv2 matplotlib scipy fastcore nbdev execnb ipywidgets IPython tqdm torchinfo captum '
           'huggingface_hub transformers pytest').split()
ALONE = f'''
import sys, warnings
class Refuse:
    def find_spec(self, name, *args):
        if name.split('.')[0] in {REFUSED}: raise ModuleNotFoundError('refused: ' + name, name=name)
sys.meta_path.insert(0, Refuse())
import torch
'''
LOAD = f'torch.hub.load({str(ROOT)!r}, "resnet18", source="local", '


def alone(code, cwd):
    "Run code in a process that has PyTorch and safetensors only -> what it prints."
    done = subprocess.run([sys.executable, '-c', ALONE + code], capture_output=True, text=True, timeout=300, cwd=cwd, env=PLAIN)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split('\n')


PLAIN = {'PATH': '/usr/bin:/bin', 'HOME': '/nonexistent', 'OMP_NUM_THREADS': '1'}                    # no PYTHONPATH


def local(name='resnet18', **kw): return torch.hub.load(str(ROOT), name, source='local', **kw)


@pytest.mark.trust('other hands', 'torch.hub where nothing but PyTorch and safetensors is')
def test_with_pytorch_and_safetensors_only(tmp_path, cases):
    "Every shipped file, a fresh net, wrong arguments; logits equal those of the package."
    cases(len(SHIPPED) + 3)
    said = alone(f'''
x = torch.linspace(-2, 2, 2*3*32*32).view(2, 3, 32, 32)
for name in {SHIPPED}:
    net = {LOAD}pretrained=True, weights=name)
    print(net.training, len(net.classes), len(net.mean), len(net.std), callable(net.transform), net(x).double().sum().item())
net = {LOAD}norm='batch', strides=(1,1,2,2), width=4, num_classes=3)
print(net.config, net.training)
for wrong in (dict(pretrained=True), dict(width='8'), dict(pretrained=True, weights='imagenet'), dict(pretrained=3)):
    try: {LOAD}**wrong)
    except (ValueError, OSError) as e: print(type(e).__name__, e)
print(*sorted({{m.split('.')[0] for m in sys.modules}} & set({REFUSED})))''', tmp_path)
    x = torch.linspace(-2, 2, 2*3*32*32).view(2, 3, 32, 32)
    for name, line in zip(SHIPPED, said):
        *words, total = line.split()
        assert words == 'False 10 3 3 True'.split()
        assert float(total) == pytest.approx(load_weights(shipped_weights(name))(x).double().sum().item(), rel=1e-6), name
    fresh, none, width, other, three, loaded, end = said[len(SHIPPED):]
    assert fresh == "{'norm': 'batch', 'strides': (1, 1, 2, 2), 'width': 4, 'num_classes': 3} True"
    assert none.startswith('FileNotFoundError no trained weights come with this version') and 'shapes10' in none
    assert width == "ValueError width must be a whole number, not '8'"
    assert other.startswith("FileNotFoundError no weights 'imagenet' come with this version: choose shapes10")
    assert three.startswith('ValueError pretrained is True or False')
    assert loaded == ''


def test_the_refusal_works(tmp_path):
    "The process above could not import any of them."
    said = alone(f'''
for name in {REFUSED}:
    try: __import__(name)
    except ModuleNotFoundError as e: print(e)''', tmp_path)
    assert said[:-1] == [f'refused: {name}' for name in REFUSED]


def test_its_dependencies_are_named():
    spec = importlib.util.spec_from_file_location('hubconf', ROOT/'hubconf.py')
    spec.loader.exec_module(hubconf := importlib.util.module_from_spec(spec))
    assert hubconf.dependencies == ['torch', 'safetensors']
    assert [name for name, v in vars(hubconf).items() if callable(v) and name[0] != '_'] == ['resnet18']      # as torch.hub.list has it
    told = hubconf.resnet18.__doc__                                                                           # and torch.hub.help
    for word in ('pretrained', 'weights', 'norm', 'strides', 'width', 'num_classes', 'classes', 'mean', 'std', 'transform'): assert word in told
    assert ('DOES NOT COME WITH THIS VERSION' in told) == ('cifar10' not in SHIPPED)


@pytest.mark.trust('other hands', 'what a pretrained network brings along')
@pytest.mark.parametrize('name', SHIPPED)
def test_what_it_brings_along(name):
    net, about = local(pretrained=True, weights=name), weights_metadata(shipped_weights(name))
    assert (net.classes, net.mean, net.std, net.config['width']) == (about['classes'], about['mean'], about['std'], about['width'])
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in resnet18(**net.config).state_dict().items()}


PICTURES = dict(
    small=lambda: Image.new('RGB', (32, 32), (9, 99, 199)),
    wide=lambda: Image.linear_gradient('L').resize((90, 40)),
    clear=lambda: Image.new('RGBA', (64, 64), (255, 0, 0, 128)),
    array=lambda: np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8),
)


@pytest.mark.trust('other hands', 'what a pretrained network brings along')
@pytest.mark.filterwarnings('ignore:.*(of it lies outside|its middle was enlarged)')
@pytest.mark.parametrize('kind', PICTURES)
def test_the_transform_sees_what_cifar_explain_sees(kind):
    picture, net = PICTURES[kind](), local(pretrained=True, weights='shapes10')
    x = net.transform(picture)
    assert (x.shape, x.dtype, x.is_contiguous()) == ((3, 32, 32), torch.float32, True)
    expected = (read_picture(picture)/255 - np.array(net.mean))/np.array(net.std)
    assert torch.allclose(x, torch.tensor(expected, dtype=torch.float32).permute(2, 0, 1), atol=1e-5)
    assert net(x[None]).shape == (1, 10)


def test_the_transform_travels():
    "With a copy, and through a pickle: it is a function of the package."
    import copy, pickle
    net = local(pretrained=True, weights='shapes10')
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.transform(PICTURES['small']()), net.transform(PICTURES['small']()))


@pytest.mark.trust('other hands', 'arguments that contradict')
@pytest.mark.parametrize('wrong, words', [
    (dict(width=4), 'the pretrained model has width 8, not 4'),
    (dict(norm='batch'), 'the pretrained model has norm layer, not batch'),
    (dict(num_classes=100), 'the pretrained model has num_classes 10, not 100'),
    (dict(strides=(1,2,2,2)), 'the pretrained model has strides'),
    (dict(pretrained=False), "weights 'shapes10' are only loaded with pretrained=True"),
    (dict(weights='../shapes10'), "no weights '../shapes10' come with this version"),
    (dict(weights=3), 'no weights 3 come with this version'),
    (dict(weights='cifar10/..'), 'no weights'),
])
def test_arguments_that_contradict(wrong, words):
    for load in (local, resnet18):
        with pytest.raises((ValueError, FileNotFoundError)) as e: load(**{**dict(pretrained=True, weights='shapes10'), **wrong})
        assert words in str(e.value) and '\n' not in str(e.value)


def test_the_address_is_that_of_the_settings():
    "A fork's pages load the fork."
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    ours = f"{config['DEFAULT']['user']}/{config['DEFAULT']['repo']}"
    told = {p.name: re.findall(r"torch\.hub\.load\('([\w-]+/[\w-]+)'", p.read_text()) for p in (ROOT/'hubconf.py', ROOT/'README.md', *ROOT.glob('nbs/*.ipynb'))}
    assert told['hubconf.py'] and {name for names in told.values() for name in names} == {ours}
