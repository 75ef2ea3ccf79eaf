"What the figures of a run show, and which weights it ships: looked at on their way to the drawing functions, and in the file."
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cifar_resnet import plots
from cifar_resnet.augment import normalise
from cifar_resnet.data import shapes10
from cifar_resnet.evaluate import confidence, confusion_counts, misclassified, predict
from cifar_resnet.gradcam import gradcam, overlay
from cifar_resnet.job import explain, figures, job, ship
from cifar_resnet.model import load_weights
from cifar_resnet.plots import png
from cifar_resnet.train import Recipe, Training

pytestmark = pytest.mark.filterwarnings('ignore:no positive evidence')        # some maps of so poor a network are empty
TEST = shapes10()[1]


@pytest.fixture(scope='module')
def run(tmp_path_factory): return job(Recipe(dataset='shapes10', width=8, epochs=2, limit=200), tmp_path_factory.mktemp('run')/'run', device='cpu', progress=False)


def seen_by(monkeypatch, *names):
    "Call names of `plots` as usual, and keep what they were given: name -> arguments."
    seen = {}
    def watch(name, usual):
        def watched(*args, **kw):
            seen[name] = args
            return usual(*args, **kw)
        monkeypatch.setattr(plots, name, watched)
    for name in names: watch(name, getattr(plots, name))
    return seen


def test_what_the_figures_show(run, monkeypatch):
    seen = seen_by(monkeypatch, 'mistakes', 'map_pairs', 'confusion')
    figures(run, TEST)
    stored = load_file(run.folder/'logits.safetensors')
    logits, labels = stored['test'], stored['test_labels']
    wrong = misclassified(logits, labels)
    true, claim = ([TEST.classes[c] for c in classes] for classes in (labels[wrong], logits[wrong].argmax(1)))

    images, true_, claim_, sure, mistakes, of = seen['mistakes']
    assert (images == TEST.images[wrong]).all() and (true_, claim_) == (true, claim) and (mistakes, of) == (run.metrics['misclassified'], 200)
    assert torch.allclose(sure, confidence(logits[wrong], run.metrics['temperature']).amax(1))

    x = normalise(torch.from_numpy(images), run.metrics['mean'], run.metrics['std'])
    maps = [gradcam(run.model, x, classes) for classes in (logits[wrong].argmax(1), labels[wrong])]
    scale = torch.stack(maps).amax((0,2,3))
    *drawn, left, right = seen['map_pairs']
    assert (left, right) == (claim, true)
    for picture, each in zip(drawn, maps, strict=True): assert abs(picture.astype(int) - overlay(images, each, scale)).max() <= 1
    assert (seen['confusion'][0] == confusion_counts(logits, labels)).all()


def test_what_a_picture_of_ones_own_shows(run, tmp_path, monkeypatch):
    (tmp_path/'picture.png').write_bytes(png(figures(run, TEST)['confusion']))
    seen = seen_by(monkeypatch, 'picture_grid')
    answer, _ = explain(tmp_path/'picture.png', run)
    image, *drawn = seen['picture_grid'][0]
    x = normalise(torch.from_numpy(image[None]), run.metrics['mean'], run.metrics['std'])
    best = predict(run.model, x)[0].topk(3).indices.tolist()
    assert [row['class'] for row in answer] == [TEST.classes[c] for c in best]
    maps = torch.cat([gradcam(run.model, x, c) for c in best])
    assert abs(np.stack(drawn) - overlay(image[None].repeat(3, 0), maps, 'shared').astype(int)).max() <= 1


def test_the_best_weights_are_shipped(tmp_path):
    training = Training(Recipe(dataset='shapes10', width=8, epochs=2, limit=200), shapes10()[0], tmp_path, device='cpu')
    training.best = dict(epoch=1, weights={k: v + 1 for k, v in training.model.state_dict().items()})
    ship(training, TEST.classes)
    found = load_weights(tmp_path/'weights.safetensors').state_dict()
    assert all(torch.equal(found[k], v) for k, v in training.best['weights'].items())
