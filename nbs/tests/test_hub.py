"One line to load: torch.hub with nothing but PyTorch and safetensors, the folder of the Hugging Face hub, torch.export."
import importlib.util, json, re, shutil, subprocess, sys
from collections import Counter
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from cifar_resnet.core import seeded
from cifar_resnet.data import shapes10
from cifar_resnet.job import HUB_FILES, hub_folder, job, model_card
from cifar_resnet.model import NORM_NAMES, HubResNet, load_weights, norm_in_words, norm_tags, resnet18, shipped_weights, weights_file, weights_metadata
from cifar_resnet.pictures import read_picture
from cifar_resnet.recipe import Recipe

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


def alone(code, cwd, more=''):
    "Run code in a process that has PyTorch and safetensors only -> what it prints."
    done = subprocess.run([sys.executable, '-c', ALONE + more + code], capture_output=True, text=True, timeout=300, cwd=cwd, env=PLAIN)
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
    (dict(weights='../weights/shapes10'), "no weights '../weights/shapes10' come with this version"),
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
    told = {p.name: re.findall(r"torch\.hub\.load\('([\w-]+/[\w-]+)'", p.read_text()) for p in (ROOT/'README.md', *ROOT.glob('nbs/*.ipynb'))}
    assert told['README.md'] and {name for names in told.values() for name in names} == {ours}


# torch.export

@pytest.mark.trust('other hands', 'torch.export: the same logits, for any number of images')
@pytest.mark.parametrize('config', [dict(), dict(strides=(1,1,2,2)), dict(norm='batch'), dict(norm='group8'), dict(norm='instance'),
                                    dict(norm='pixel'), dict(norm='none')], ids=str)
def test_export(config, tmp_path, cases):
    cases(4)
    with seeded('export', 0): net = resnet18(**{**dict(width=8), **config}).eval()
    x = torch.randn(3, 3, 32, 32)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=1)},))
    torch.export.save(program, tmp_path/'net.pt2')
    exported = torch.export.load(tmp_path/'net.pt2').module()
    for n in (1, 2, 3, 50):
        x = torch.randn(n, 3, 32, 32)
        assert torch.allclose(exported(x), net(x), atol=1e-4), n


# a folder of the Hugging Face hub

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    recipe = Recipe(dataset='shapes10', width=2, epochs=2, batch_size=20, limit=60)
    data = shapes10(n_train=200, n_test=40)
    return job(recipe, tmp_path_factory.mktemp('hub')/'run', device='cpu', progress=False, draw=False, data=data)


def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.trust('other hands', 'a folder of the Hugging Face hub, to the bit')
@pytest.mark.parametrize('config', [dict(norm='layer'), dict(strides=(1,1,2,2)), dict(width=3), dict(norm='batch'), dict(num_classes=3),
                                    dict(classes=['a', 'ü "b"\n'], num_classes=2, mean=[.1, .2, .3], std=[.4, .5, .6])], ids=str)
def test_a_round_trip(config, tmp_path):
    with seeded('hub', 0): net = HubResNet(**{**dict(width=2), **config})
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean += 1
    net.save_pretrained(tmp_path/'hub')
    again = HubResNet.from_pretrained(tmp_path/'hub')
    assert equal(again.state_dict(), net.state_dict()) and again.config == net.config and not again.training
    assert all(getattr(again, k) == getattr(net, k) for k in ('classes', 'mean', 'std'))
    assert equal(load_weights(tmp_path/'hub'/'model.safetensors').state_dict(), net.state_dict())           # it is a file of ours
    about = weights_metadata(tmp_path/'hub'/'model.safetensors')
    assert all(about.get(k) == getattr(net, k) for k in ('classes', 'mean', 'std'))
    again.save_pretrained(tmp_path/'third')
    for name in HUB_FILES: assert (tmp_path/'third'/name).read_bytes() == (tmp_path/'hub'/name).read_bytes()
    assert ModelCard.load(tmp_path/'hub'/'README.md').data.license == 'apache-2.0'


def without(name): return lambda folder: (folder/name).unlink()


def rewritten(name, change):
    def damage(folder):
        held = json.loads((folder/name).read_text())
        change(held)
        (folder/name).write_text(json.dumps(held))
    return damage


def written(name, content):
    def damage(folder): (folder/name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return damage


def cut(folder): (folder/'model.safetensors').write_bytes((folder/'model.safetensors').read_bytes()[:-4])


def pickled(folder):
    (folder/'model.safetensors').unlink()
    torch.save(resnet18(width=2).state_dict(), folder/'pytorch_model.bin')


@pytest.mark.trust('other hands', 'a folder of the hub that is damaged, or contradicts itself')
@pytest.mark.parametrize('damage, words', [
    (without('model.safetensors'), 'there is no file'),
    (without('config.json'), 'there is no config.json beside'),
    (written('config.json', '[]'), 'is no JSON object'),
    (written('config.json', '{'), 'is no JSON object'),
    (written('config.json', ''), 'is no JSON object'),
    (written('config.json', 'null'), 'is no JSON object'),
    (written('config.json', b'\xff'), 'is no JSON object'),
    (rewritten('config.json', lambda c: c.update(width=4)), 'says width 2, but what was asked for, or the config.json beside it, 4'),
    (rewritten('config.json', lambda c: c.update(classes=['cat', 'dog', 'bird'])), "says classes None, but what was asked for, or the config.json beside it, ['cat', 'dog', 'bird']"),
    (rewritten('config.json', lambda c: c.update(mean=[.9, .9, .9])), 'says mean None, but'),
    (rewritten('config.json', lambda c: c.update(std='hello')), 'says std None, but'),
    (rewritten('config.json', lambda c: c.update(norm='x')), "there is no norm 'x'"),
    (rewritten('config.json', lambda c: c.update(width='2')), "width must be a whole number, not '2'"),
    (rewritten('config.json', lambda c: c.update(strides=[1, 1, 2, 2])), 'says strides (1, 2, 2, 2), but'),
    (cut, 'does not hold the weights of one of our models'),
    (pickled, 'there is no file'),
])
def test_a_folder_that_is_damaged(damage, words, tmp_path):
    HubResNet(width=2).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises((ValueError, OSError)) as e: HubResNet.from_pretrained(tmp_path)
    assert words in str(e.value) and '\n' not in str(e.value)


@pytest.mark.trust('other hands', 'a folder of the hub that is damaged, or contradicts itself')
@pytest.mark.parametrize('change, words', [
    (dict(classes=['cat', 'dog', 'bird']), "['cat', 'dog', 'bird']: fetch both anew"),
    (dict(classes=[*'jihgfedcba']), "says classes ['a', 'b', "),                      # the right number, in another order
    (dict(classes=None), 'says classes'),
    (dict(mean=[.9, .9, .9]), 'says mean [0.1, 0.2, 0.3], but'),
    (dict(mean='hello'), "'hello': fetch both anew"),
    (dict(mean=None), 'says mean [0.1, 0.2, 0.3], but'),
    (dict(std=[.4, .5, .61]), 'says std [0.4, 0.5, 0.6], but'),
    (dict(std=3), 'says std [0.4, 0.5, 0.6], but'),
])
def test_what_the_weights_say_of_themselves_counts(change, words, tmp_path):
    "Classes, mean and std of config.json are those beside the weights, or nothing is loaded; what was left out is no other."
    HubResNet(width=2, classes=[*'abcdefghij'], mean=[.1, .2, .3], std=[.4, .5, .6]).save_pretrained(tmp_path)
    rewritten('config.json', lambda c: c.update(change))(tmp_path)
    with pytest.raises(ValueError) as e: HubResNet.from_pretrained(tmp_path)
    assert words in str(e.value) and '\n' not in str(e.value) and 'model.safetensors' in str(e.value)
    (tmp_path/'config.json').unlink()
    with pytest.raises(ValueError, match='there is no config.json beside'): HubResNet.from_pretrained(tmp_path)
    whole = HubResNet.from_pretrained(tmp_path, width=2, classes=tuple('abcdefghij'), mean=(.1, .2, .3), std=(.4, .5, .6))
    assert list(whole.classes) == [*'abcdefghij']


def test_a_pickle_is_refused():
    "What the mixin would load where the hub has no model.safetensors."
    with pytest.raises(ValueError, match='is a pickle, which may run code'): HubResNet._load_as_pickle(HubResNet(width=2), 'pytorch_model.bin', 'cpu', True)


def test_without_huggingface_hub(tmp_path):
    "One sentence; and nothing else needs it, or loads it."
    said = alone('''
import cifar_resnet.model as model
try: from cifar_resnet.model import HubResNet
except ImportError as e: print(e)
try: model.Resnet
except AttributeError as e: print(e)''', tmp_path, more=f'sys.path.insert(0, {str(ROOT)!r})\n')
    assert said[:2] == ['HubResNet needs huggingface_hub: pip install huggingface_hub', "module 'cifar_resnet.model' has no attribute 'Resnet'"]
    code = 'import sys, cifar_resnet.cli, cifar_resnet.job, cifar_resnet.explore; print("huggingface_hub" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert done.stdout == 'False\n', done.stderr


# the card

@pytest.mark.trust('other hands', 'a model card: each number from run.json, and YAML that is read')
def test_the_folder_of_a_run(run, tmp_path):
    folder = hub_folder(run.folder, tmp_path/'hub')
    net = HubResNet.from_pretrained(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(HUB_FILES)
    assert equal(net.state_dict(), run.model.state_dict()) and net.classes == run.metrics['classes']
    card = ModelCard.load(folder/'README.md')
    assert (folder/'README.md').read_text() == model_card(run) == model_card(run.folder)
    result, = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ('accuracy', run.metrics['test_accuracy'], 'shapes10')
    before = {name: (folder/name).read_bytes() for name in HUB_FILES}
    hub_folder(run, folder)                                                         # once more: the same bytes
    assert before == {name: (folder/name).read_bytes() for name in HUB_FILES}


NUMBER = re.compile(r'\d+(?:,\d{3})*(?:\.\d+)?')


def numbers(text): return Counter(NUMBER.findall(text))


def shaken(value):
    "The same record with other numbers."
    if isinstance(value, bool) or value is None: return value
    if isinstance(value, int): return value + 4321
    if isinstance(value, float): return value*7.371 + .0123
    if isinstance(value, str): return NUMBER.sub(lambda m: str(int(re.sub(r'\D', '', m[0])) + 98761), value)
    if isinstance(value, dict): return {k: shaken(v) for k, v in value.items()}
    return [shaken(v) for v in value]


FIXED = Counter({'2.0': 2, '18': 3, '32': 4, '95': 1, '10': 6, '10.1': 1, '256': 1})      # licence, ResNet-18, pixels, interval, data sets, SHA-256


@pytest.mark.trust('other hands', 'a model card: each number from run.json, and YAML that is read')
@pytest.mark.parametrize('tested', [True, False])
def test_no_number_is_typed(run, tested):
    "Change every number of run.json: all numbers of the card change, but for those of names."
    pinned = dict(versions={'torch': '77.88'}, train_seconds=33., hardware='x', git_revision='y', data_sha256='z')        # no number by chance
    shut = {} if tested else dict(test_reads=0, test_accuracy=None, test_accuracy_ci95=None, misclassified=None)
    m = {**run.metrics, **pinned, **shut}
    other = {**shaken(m), **{k: m[k] for k in ('test_reads', 'data', 'hardware', 'git_revision', 'data_sha256')}, 'classes': ['o'*i for i in range(1, 98)]}
    cards = [model_card(replace(run, metrics=found)) for found in (m, other)]
    same = numbers(cards[0]) & numbers(cards[1])
    assert not same - FIXED, same - FIXED
    assert sum((numbers(cards[0]) - FIXED).values()) > 30


def of_norm(run, norm): return replace(run, metrics={**run.metrics, 'recipe': {**run.metrics['recipe'], 'norm': norm}})


NORM_TAGS = dict(layer=['layernorm'], batch=['batchnorm'], group8=['groupnorm'], group32=['groupnorm'], instance=['instancenorm'], pixel=['layernorm2d'], none=[])


@pytest.mark.trust('other hands', 'a model card: each number from run.json, and YAML that is read')
@pytest.mark.parametrize('norm', NORM_TAGS)
def test_a_card_names_the_norm(run, norm, tmp_path):
    "In title, first sentence, head and tags: that of a run, and that of a network alone."
    HubResNet(norm, width=32).save_pretrained(tmp_path)
    cards = ModelCard(model_card(of_norm(run, norm))), ModelCard.load(tmp_path/'README.md')
    words = 'without normalisation' if norm == 'none' else f'with {NORM_NAMES[norm]} only'
    for card in cards:
        assert f'A ResNet-18 {words}, for pictures' in ' '.join(card.text.split())
        assert [tag for tag in card.data.tags if 'norm' in tag] == NORM_TAGS[norm]
        assert ('LayerNorm' in card.text) == (norm in ('layer', 'pixel')) and ('layernorm' in card.data.tags) == (norm == 'layer')
    assert f'\n# ResNet-18 {words}, width 2, shapes10\n' in cards[0].text and cards[0].data.model_name == f'ResNet-18 {words}, width 2, shapes10'


SAID = ['test_accuracy', 'test_accuracy_ci95', 'misclassified', 'valid_loss', 'temperature', 'parameters', 'epoch', 'train_seconds', 'data_sha256',
        'git_revision', 'precision', 'hardware', 'versions', 'recipe', 'classes', 'data']


@pytest.mark.trust('other hands', 'a model card: each number from run.json, and YAML that is read')
@pytest.mark.parametrize('field', SAID)
def test_what_a_card_says(run, field):
    "A card whose record has another value there is another card."
    new = {'test_accuracy_ci95': [.011, .022], 'train_seconds': 86400., 'versions': {'torch': '9.9'}, 'classes': ['ball', 'box'],
           'recipe': {**run.metrics['recipe'], 'lr': .777}}
    value = new.get(field, 'other' if isinstance(run.metrics[field], str) else .7654)
    if field in ('misclassified', 'parameters', 'epoch'): value = 7654
    assert model_card(replace(run, metrics={**run.metrics, field: value})) != model_card(run)


def test_a_run_that_did_not_read_its_test_set_says_so(run):
    m = {**run.metrics, 'test_reads': 0, 'test_accuracy': None, 'test_accuracy_ci95': None, 'misclassified': None}
    card = model_card(replace(run, metrics=m))
    assert '**The test set was not read.**' in card and f'{m["valid_accuracy"]:.2%}' in card and 'model-index' not in card
    assert ModelCard(card).data.eval_results is None


@pytest.mark.parametrize('field, value, words', [
    ('edits', [[1, 'lr', .1, .2]], 'It was edited by hand while it trained (1×).'),
    ('git_clean', False, 'The code was not that of the revision below'),
    ('data', 'folder:"of": \n---\x1b[2J', 'folder:"of": \\n---\\x1b[2J'),
])
def test_what_must_not_be_hidden(run, field, value, words):
    card = model_card(replace(run, metrics={**run.metrics, field: value}))
    assert words in card and '\x1b' not in card and ModelCard(card).data.license == 'apache-2.0'


@pytest.mark.trust('other hands', 'a folder of the hub that is damaged, or contradicts itself')
@pytest.mark.parametrize('make, words', [
    (lambda p: (p.mkdir(), (p/'notes.txt').write_text('x')), 'holds something else (notes.txt)'),
    (lambda p: p.write_text('x'), 'holds something else (hub)'),
])
def test_nothing_of_anybody_is_overwritten(run, tmp_path, make, words):
    make(tmp_path/'hub')
    with pytest.raises(FileExistsError) as e: hub_folder(run, tmp_path/'hub')
    assert words in str(e.value)


def test_the_run_folder_is_not_the_hubs(run):
    with pytest.raises(FileExistsError, match='holds something else'): hub_folder(run, run.folder)


def test_weights_that_are_not_the_runs(run, tmp_path):
    "A card is only written beside the weights that its numbers are of."
    shutil.copytree(run.folder, tmp_path/'run')
    (tmp_path/'run'/'weights.safetensors').write_bytes(weights_file(resnet18(width=2)))
    with pytest.raises(ValueError, match='is not the file that the run wrote'): hub_folder(tmp_path/'run', tmp_path/'hub')
    assert not (tmp_path/'hub').exists()


def test_a_norm_that_nobody_has_named_yet_is_called_what_it_is_called_here():
    assert (norm_in_words('group4'), norm_tags('group4')) == ('with group4 only', ['group4'])
