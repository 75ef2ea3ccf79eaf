"""Why LayerNorm alone learns slowly, and what filters with mean zero change: about an hour and a half on one CPU core.

    CIFAR10_DIR=... python nbs/experiments/filters.py --out DIR             # all parts; what is finished is kept, the same command goes on
    CIFAR10_DIR=... python nbs/experiments/filters.py --out DIR --publish   # and write nbs/results/filters.json
    ... --only geometry                                                     # one part: geometry, ablation or maps

geometry   networks by the strict recipe, looked at every half epoch: how alike different images are to each block, what share of the activations is the channels' means,
           how much of the gradient and of Adam's step lies along the direction that the projection removes, and what the two parts of one step do, to the loss and to
           all images at once. Beside free, zero-mean and BatchNorm there are two halves of the projection: filters that are centred once, at the start, and filters
           that keep the mean they were drawn with
ablation   norm x filters, width 16, 20,000 images of CIFAR-10, 3 epochs, three seeds
maps       are the maps of a zero-mean network truer? Shapes-10, width 8, a last map of 8x8 cells, three seeds of each: clean pictures, and the shortcut
"""
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cifar_resnet import train
from cifar_resnet.augment import normalise
from cifar_resnet.core import evaluating
from cifar_resnet.data import SHORTCUT, TAG, cifar10, shapes10
from cifar_resnet.evaluate import predict
from cifar_resnet.faithful import localisation, mass_accuracy, pointing
from cifar_resnet.gradcam import gradcam, upsample
from cifar_resnet.evaluate import spread
from cifar_resnet.scale import sweep
from cifar_resnet.model import centre_filters
from cifar_resnet.runs import provenance, read_json, write_json
from cifar_resnet.train import Recipe, Training, load_run

from faithful import reach
from in_parts import in_parts

RESULTS = Path(__file__).parent.parent/'results'/'filters.json'
DEVICE = torch.device('cpu')
NETS = {                                       # what is done to the filters' means: at the start, after a step
    'layer, free': dict(norm='layer', filters='free'),
    'layer, centred once': dict(norm='layer', filters='zero_mean', halves=(True, False)),
    'layer, means held': dict(norm='layer', filters='zero_mean', halves=(False, True)),
    'layer, zero-mean': dict(norm='layer', filters='zero_mean'),
    'batch, free': dict(norm='batch', filters='free'),
}
WIDTH, IMAGES, EPOCHS = 16, 20_000, 3          # of the networks that are looked at
LOOKS = 256                                    # held-out images that they are looked at with


def half_of(at_start, after_steps):
    "One half of the projection, in place of `centre_filters`."
    drawn = []
    def project(model):
        means = [w.mean((1,2,3), keepdim=True) for w in filters_of(model)]
        if not drawn:                                                                    # the first call: after the initialisation
            drawn.extend(means)
            if at_start: centre_filters(model)
        elif after_steps:
            with torch.no_grad(): torch._foreach_sub_(filters_of(model), [m - d for m, d in zip(means, drawn)])
    return project


def filters_of(model): return [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]


def mean_share(tensors):
    "How much of the energy of filters, their gradients or their steps (c_out,c_in,h,w) lies along each filter's own mean."
    mean = sum((t.mean((1,2,3))**2).sum()*t[0].numel() for t in tensors)
    return (mean/sum((t**2).sum() for t in tensors)).item()


def alike(model, x):
    "The mean cosine between the activations of two images behind each block; and behind the last one the share of the energy that is the channels' means."
    outs = []
    handles = [block.register_forward_hook(lambda m, i, out: outs.append(out)) for stage in model.stages for block in stage]
    with evaluating(model), torch.no_grad(): model(x)
    for handle in handles: handle.remove()
    n = len(x)
    cosines = []
    for out in outs:
        rows = F.normalize(out.flatten(1))
        cosines.append((((rows.sum(0)**2).sum() - n)/(n*(n-1))).item())
    last = outs[-1]
    return dict(cosines=cosines, channel_means=((last.mean((0,2,3))**2).sum()/(last**2).mean((0,2,3)).sum()).item())


@contextmanager
def projecting(by):
    "Inside, trainings project their filters by this function."
    usual, train.centre_filters = train.centre_filters, by
    try: yield
    finally: train.centre_filters = usual


def with_step(model, steps, x, y):
    "A copy of the model moved by `steps`: loss, and the logits."
    moved = deepcopy(model)
    with torch.no_grad():
        for p, step in zip(moved.parameters(), steps): p += step
        moved.train()                                          # as it is trained: BatchNorm by its batch
        logits = moved(x)
    return F.cross_entropy(logits, y).item(), logits


def one_step(training, x, y):
    "What the next step of this training is made of, and what its two parts do to the loss and to the logits of other images."
    with projecting(lambda model: None):                       # a copy takes the step; the projection is left out, so that what it would remove is seen
        t = copy_of(training)
        before = [p.detach().clone() for p in t.model.parameters()]
        t.step()
    step = [p.detach() - b for p, b in zip(t.model.parameters(), before)]
    mean = [s.mean((1,2,3), keepdim=True).expand_as(s) if s.ndim == 4 else torch.zeros_like(s) for s in step]
    rest = [s - m for s, m in zip(step, mean)]
    gradient = [p.grad for p in t.model.parameters() if p.ndim == 4]
    found = dict(gradient=mean_share(gradient), adams_step=mean_share([s for s in step if s.ndim == 4]))
    loss, logits = with_step(training.model, [torch.zeros_like(s) for s in step], x, y)
    length = lambda part: torch.cat([s.flatten() for s in part]).norm()
    for name, part in dict(mean=mean, rest=rest).items():
        after, moved = with_step(training.model, part, x, y)
        change = moved - logits                                                   # (N,10)
        unit = [s*(length(step)/length(part)) for s in part]                      # as long as the whole step
        bend = sum(with_step(training.model, [sign*s for s in unit], x, y)[0] for sign in (1, -1))/2 - loss
        found[name] = dict(loss=after - loss, bend=bend, common=((change.mean(0)**2).sum()/(change**2).mean(0).sum()).item(), size=(change**2).mean().sqrt().item())
    return found


def copy_of(t):
    "A training of its own at the same place: with the same next batch."
    new = Training(t.recipe, DATA, device='cpu', precision=t.precision)
    new.model.load_state_dict(t.model.state_dict()); new.opt.load_state_dict(deepcopy(t.opt.state_dict()))
    new.epoch = t.epoch
    new.open_epoch(t.at, t.losses[:t.at])
    return new


def geometry(args):
    global DATA
    DATA = cifar10(args.data_dir)[0]
    found = {}
    for name, fields in NETS.items():
        fields = dict(fields)
        train.centre_filters = half_of(*fields.pop('halves')) if 'halves' in fields else centre_filters
        t = Training(Recipe(width=WIDTH, limit=IMAGES, epochs=EPOCHS, **fields), DATA, device='cpu', precision='fp32')
        x, y = t.valid_x[:LOOKS], t.valid_y[:LOOKS]
        rows, half = [], len(t.losses)//2
        def look():
            rows.append(dict(epoch=t.steps/len(t.losses), **alike(t.model, x), filters=mean_share(filters_of(t.model)), **one_step(t, x, y)))
            print(name, {k: v if not isinstance(v, float) else round(v, 3) for k, v in rows[-1].items()}, flush=True)
        look()
        while t.epoch < EPOCHS:
            t.step()
            if t.epoch < EPOCHS and t.at in (0, half): look()
        found[name] = dict(rows=rows, history=t.history)
    train.centre_filters = centre_filters
    return dict(width=WIDTH, images=IMAGES, looked_at=LOOKS, precision='float32', nets=found)


def ablation(args):
    recipes = {f'{norm}-{filters}': dict(norm=norm, filters=filters, width=16, limit=20_000, epochs=3)
               for norm in ('layer', 'batch', 'group8') for filters in ('free', 'zero_mean')}
    found = sweep(recipes, args.seeds, Path(args.out)/'ablation', ['cpu'], data_dir=args.data_dir)
    if found['failed']: raise RuntimeError(found['failed'][0]['error'])
    return dict(table=found['table'], runs=[{k: row[k] for k in ('name', 'seed', 'valid_accuracy', 'valid_loss', 'precision', 'hardware', 'train_seconds')} for row in found['runs']])


def maps(args):
    "Accuracy, pointing, mass and leak of the maps of both kinds of networks; and of networks that learned with a square in the corner that tells the class, whether they read it, and whether the map goes there."
    kinds = {'free': dict(filters='free', epochs=35), 'zero_mean': dict(filters='zero_mean', epochs=24)}
    recipes = {f'{filters}-{variant}': dict(dataset='shapes10', width=8, strides=(1,1,2,2), variant=variant, **kind) for variant in ('clean', 'shortcut') for filters, kind in kinds.items()}
    found = sweep(recipes, args.seeds, Path(args.out)/'maps', ['cpu'], read_test=True)
    if found['failed']: raise RuntimeError(found['failed'][0]['error'])
    tests = {variant: shapes10(variant, n_train=10, n_test=1000, seed=1)[1] for variant in ('clean', 'shortcut')}
    rows = dict(clean=[], shortcut=[])
    for row in found['table']:
        filters, variant = row['name'].rsplit('-', 1)
        test, looks = tests[variant], dict(clean=on_the_object, shortcut=on_the_square)[variant]
        runs = [load_run(Path(args.out)/'maps'/f'{row["name"]}-{run["seed"]}') for run in found['runs'] if run['name'] == row['name']]
        measured = [looks(run, test, lambda images: normalise(torch.from_numpy(images), run.metrics['mean'], run.metrics['std'])) for run in runs]
        rows[variant].append(dict(filters=filters, epochs=kinds[filters]['epochs'], runs=row['runs'], test_accuracy=row['test_accuracy'], **{k: spread([m[k] for m in measured]) for k in measured[0]}))
        print(variant, rows[variant][-1], flush=True)
    return rows


def heat_of(run, x, labels): return upsample(torch.cat([gradcam(run.model, *part) for part in zip(x.split(250), labels.split(250))]))


def on_the_object(run, test, normalised):
    x, labels, silhouette = normalised(test.images), torch.from_numpy(test.labels), torch.from_numpy(test.masks['filled'])
    where, rings = localisation(heat_of(run, x, labels), silhouette), reach(run.model, x[:500])
    return {**{k: where[k].mean().item() for k in ('pointing', 'mass')}, 'leak': rings[4]/rings[0]}        # 24 pixels away, of what changes nearby


def on_the_square(run, test, normalised):
    other, labels, tag = test.images.copy(), torch.from_numpy(test.labels), torch.from_numpy(test.masks['tag'])
    other[:,TAG,TAG] = (SHORTCUT[(test.labels+1)%10]*255).astype(np.uint8)[:,None,None]
    heat, near = heat_of(run, normalised(test.images), labels), F.max_pool2d(tag[:,None].float(), 5, 1, 2)[:,0] > 0
    follows = predict(run.model, normalised(other)).argmax(1) == (labels+1) % 10
    return dict(follows_the_square=follows.float().mean().item(), pointing_near_it=pointing(heat, near).mean().item(), mass_on_it=mass_accuracy(heat, tag).mean().item())


PARTS = dict(geometry=geometry, ablation=ablation, maps=maps)


if __name__ == '__main__': in_parts(__doc__, PARTS, RESULTS, lambda: provenance(DEVICE))
