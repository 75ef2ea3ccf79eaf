"What the figures of a run show, and which weights it ships: looked at on their way to the drawing functions, and in the file."
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cifar_resnet import plots
from cifar_resnet.augment import normalise
from cifar_resnet.data import read_picture, shapes10
from cifar_resnet.evaluate import confidence, confusion_counts, misclassified, predict
from cifar_resnet.gradcam import gradcam, overlay
from cifar_resnet.job import explain, figures, job, write_weights
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
    seen = seen_by(monkeypatch, 'mistakes', 'contrasts', 'confusion')
    figures(run, TEST)
    stored = load_file(run.folder/'logits.safetensors')
    logits, labels = stored['test'], stored['test_labels']
    wrong = misclassified(logits, labels)
    true, claim = ([TEST.classes[c] for c in classes] for classes in (labels[wrong], logits[wrong].argmax(1)))

    images, true_, claim_, sure, mistakes, of = seen['mistakes']
    assert (images == TEST.images[wrong]).all() and (true_, claim_) == (true, claim) and (mistakes, of) == (run.metrics['misclassified'], 200)
    assert torch.allclose(sure, confidence(logits[wrong], run.metrics['temperature']).amax(1))

    shown, drawn, is_, left, right, margin, evidence = seen['contrasts']
    x = normalise(torch.from_numpy(images), run.metrics['mean'], run.metrics['std'])
    maps = [gradcam(run.model, x, classes, relu=False) for classes in (logits[wrong].argmax(1), labels[wrong])]
    maps.append(maps[0] - maps[1])
    scale = torch.stack(maps).abs().amax((0,2,3))
    assert (shown == images).all() and is_ == true
    for titles, names, m in ((left, claim, maps[0]), (right, true, maps[1])): assert titles == [n if each.max() > 0 else f'{n}: none' for n, each in zip(names, m)]
    for picture, each, signed in zip(drawn, maps, (False, False, True), strict=True): assert abs(picture.astype(int) - overlay(images, each, scale, signed=signed)).max() <= 1
    expected = logits[wrong].gather(1, torch.stack([logits[wrong].argmax(1), labels[wrong]], 1))
    assert torch.allclose(margin, expected[:,0] - expected[:,1], atol=1e-4) and (margin > 0).all()
    assert torch.allclose(evidence, maps[2].sum((1,2)), atol=1e-4)
    assert (seen['confusion'][0] == confusion_counts(logits, labels)).all()


def test_what_a_picture_of_ones_own_shows(run, tmp_path, monkeypatch):
    (tmp_path/'picture.png').write_bytes(png(figures(run, TEST)['confusion']))
    seen = seen_by(monkeypatch, 'picture_grid')
    answer, _ = explain(tmp_path/'picture.png', run)
    large, small, *drawn = seen['picture_grid'][0]
    assert (large == read_picture(tmp_path/'picture.png', 192)).all() and (small[3::6,3::6] == read_picture(tmp_path/'picture.png')).all()
    x = normalise(torch.from_numpy(np.array(small[None,3::6,3::6])), run.metrics['mean'], run.metrics['std'])
    logits = predict(run.model, x)[0]
    best = logits.topk(3).indices.tolist()
    assert [row['class'] for row in answer] == [TEST.classes[c] for c in best]
    assert np.allclose([row['logit'] for row in answer], logits[best], atol=1e-5)
    assert np.allclose([row['confidence'] for row in answer], (logits/run.metrics['temperature']).softmax(0)[best], atol=1e-5)
    maps = torch.cat([gradcam(run.model, x, c, relu=False) for c in best])
    assert np.allclose([row['map'] for row in answer], maps, atol=1e-5)
    for row, m in zip(answer, maps): assert np.isclose(row['evidence'], m.sum(), atol=1e-4) and row['positive'] == bool(m.max() > 0)
    assert abs(np.stack(drawn) - overlay(large[None].repeat(3, 0), maps, 'shared').astype(int)).max() <= 1


def test_the_best_weights_are_shipped(tmp_path):
    training = Training(Recipe(dataset='shapes10', width=8, epochs=2, limit=200), shapes10()[0], tmp_path, device='cpu')
    training.best = dict(epoch=1, weights={k: v + 1 for k, v in training.model.state_dict().items()})
    write_weights(training, TEST.classes)
    found = load_weights(tmp_path/'weights.safetensors').state_dict()
    assert all(torch.equal(found[k], v) for k, v in training.best['weights'].items())
