"""Are the maps true? The tables and curves of 11_faithful, on whole test runs.

    python nbs/experiments/faithful.py                                             # print them
    CIFAR10_DIR=... python nbs/experiments/faithful.py --publish --weights FILE --twins SEEDS # and write nbs/results/faithful.json

FILE is the weights.safetensors of a CIFAR-10 run, for the tests without masks. SEEDS is a folder with two further seeds of three
networks, which `--train_twins SEEDS` fills (a quarter of an hour on one core); without it there is one network of each kind.
What is left out keeps the table that is there. About ten minutes on one core.
"""
import platform, sys, warnings
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cifar_resnet.augment import normalise
from cifar_resnet.core import home, rng
from cifar_resnet.data import SHORTCUT, TAG, cifar10, shapes10
from cifar_resnet.evaluate import predict, spread
from cifar_resnet.faithful import cascade, erasing, influence, localisation, mass_accuracy, occlusion, pointing, rank_correlation, references
from cifar_resnet.gradcam import contrast, gradcam, receptive_centres, receptive_fields, upsample
from cifar_resnet.model import WEIGHTS, load_weights, weights_metadata
from cifar_resnet.runs import read_json, write_json

from small_nets import store, train

RESULTS = Path(__file__).parent.parent/'results'/'faithful.json'
PARTS = ['head', *(f'stages.{i}.{j}' for i in (3,2,1,0) for j in (1,0)), 'stem']
N, FEW, DRAWINGS = 2000, 500, 16        # pictures; pictures for the tests that take many passes; drawings of random weights
MEASURED = 192                          # pictures that say where the cells look
TWIN_SEEDS = 1, 2
KINDS = {'LayerNorm, 8×8 cells': 'shapes10', 'BatchNorm, 8×8 cells': 'shapes10-batch', 'LayerNorm, 4×4 cells': 'shapes10-coarse'}


def interval(values):
    "The mean, and the ends of its 95% interval."
    found = spread(np.asarray(values, float))
    return found['mean'], *found['ci95']


def some(values): return [round(v, 5) for v in interval(values)]


def with_interval(values): return '{:.3f} ({:.3f} to {:.3f})'.format(*interval(values))


def pictures(variant, n=N, name='shapes10'):
    "Test pictures of Shapes-10 that no network has seen: images, normalised as the network of this name expects, labels, masks."
    test = shapes10(variant, n_train=10, n_test=n, seed=1)[1]
    return test, normalised(test.images, name), torch.from_numpy(test.labels), {k: torch.from_numpy(m) for k, m in test.masks.items()}


def normalised(images, name):
    about = weights_metadata(WEIGHTS/f'{name}.safetensors')
    return normalise(torch.from_numpy(images), about['mean'], about['std'])


def maps(model, x, y, **kw): return torch.cat([gradcam(model, *part, **kw) for part in zip(x.split(250), y.split(250))])


def layercam(model, x, y): return maps(model, x, y, method='layercam', relu=False)


def centres(model, x): return receptive_centres(receptive_fields(model, x[:MEASURED]))


def identities(nets, x, y):
    "How far the identities of the last block are from holding."
    rows = {k: 0. for k in ('map = class activation map / cells', 'map = HiResCAM', 'sum of the map = logit − bias', 'sum of a difference = margin − difference of the biases')}
    other = (y + 1) % 10
    for net in nets:
        signed, hires, logits = (torch.cat(parts) for parts in zip(*((gradcam(net, xb, 'all', relu=False), gradcam(net, xb, 'all', method='hirescam', relu=False), predict(net, xb)) for xb in x.split(250))))
        A, w, b = torch.cat([net.features(xb).detach() for xb in x.split(250)]), net.head.weight.detach(), net.head.bias.detach()
        cam = torch.einsum('nk,bkhw->bnhw', w, A)/A[0,0].numel()
        why = contrast(net, x[:250], instead=other[:250], target=y[:250])
        sums = signed.sum((2,3)), logits - b
        margin = why.difference.sum((1,2)), why.margin - (b[y] - b[other])[:250]
        for k, (left, right) in zip(rows, ((signed, cam), (signed, hires), sums, margin)): rows[k] = max(rows[k], ((left - right).abs().max()/right.abs().max()).item())
    return [{'identity': k, 'networks': len(nets), 'pictures': len(x), 'largest deviation': float(f'{v:.1e}')} for k, v in rows.items()]


def where(model, clean):
    "Localisation of the maps of the true class: on tiles, where theory has the cells, and where they were measured to look; beside the references."
    test, x, y, masks = clean
    raw = maps(model, x, y)
    tiles, theory, measured = [(np.arange(n) + .5)*32/n - .5 for n in raw.shape[1:]], [np.arange(n)*32/n for n in raw.shape[1:]], centres(model, x)
    squeezed = [15.5 + (t - 15.5)*m.std()/t.std() for t, m in zip(tiles, measured)]        # towards the middle of the picture, as much as measured: a control
    heats = {'Grad-CAM, on tiles': upsample(raw), 'Grad-CAM, by theory': upsample(raw, centres=theory), 'Grad-CAM, as measured': upsample(raw, centres=measured), 'Grad-CAM, squeezed': upsample(raw, centres=squeezed), 'LayerCAM': upsample(layercam(model, x, y)), **references(test.images, masks['filled'], raw.shape[1:])}
    return {name: {k: some(v) for k, v in localisation(heat, masks['filled']).items()} for name, heat in heats.items()}


def placement(by_kind):
    "Means over the networks of a kind (and the lowest and highest), for each way to place the cells."
    rows = []
    for kind, parts in by_kind.items():
        for way in ('on tiles', 'by theory', 'as measured', 'squeezed'):
            found = [part[f'Grad-CAM, {way}'] for part in parts]
            values = {k: [p[k][0] for p in found] for k in ('pointing', 'mass', 'rank', 'iou')} | {k: [p[k][0] for p in found] for k in ('down', 'right')} | {"of the oracle's pointing": [p['pointing'][0]/part['oracle']['pointing'][0] for p, part in zip(found, parts)]}
            rows.append({'network': kind, 'seeds': len(parts), 'cells': way, **{k: [round(float(f(v)), 3) for f in (np.mean, min, max)] for k, v in values.items()}})
    return rows


def classes(model):
    "Two objects: the share of the evidence that lies on the right one. Distractors: the evidence on them."
    _, x, y, masks = pictures('two', name='shapes10-distractors')
    both = masks['labels2'] >= 0
    on = lambda heat: [mass_accuracy(heat, masks[k]) for k in ('filled', 'filled2')]
    (a, b), (c, d) = (on(upsample(maps(model, x, labels))) for labels in (y, masks['labels2'].clamp_min(0)))
    share = lambda own, other, which: with_interval((own/(own + other))[which & (own + other > 0)])
    rows = [{'pictures': 'two objects', 'evidence': f'for the {name} class: on its object, of what is on either', 'share': v, 'chance': .5} for name, v in (('first', share(a, b, both)), ('second', share(d, c, both)))]
    _, x, y, masks = pictures('distractors', name='shapes10-distractors')
    heat = upsample(maps(model, x, y))
    any_ = masks['distractor'].any(2).any(1)
    for name, k in (('the object', 'filled'), ('the distractors', 'distractor')):
        rows.append({'pictures': 'distractors', 'evidence': f'on {name}', 'share': with_interval(mass_accuracy(heat, masks[k])[any_]), 'chance': round(masks[k][any_].float().mean().item(), 3)})
    return rows


def shortcut(cheats, honest):
    "Where the maps of networks that read the square lie, and what they read. `cheats`: name -> network."
    test, x, y, masks = pictures('shortcut', name='shapes10-shortcut')
    heats = {**{f'learned with squares, {name}': upsample(maps(cheat, x, y)) for name, cheat in cheats.items()}, 'never saw a square': upsample(maps(honest, normalised(test.images, 'shapes10'), y)),
             'the true square, on the same cells': references(test.images, masks['tag'], (8,8))['oracle'], 'every place alike': torch.ones(len(x),32,32)}
    near = F.max_pool2d(masks['tag'][:,None].float(), 5, 1, 2)[:,0] > 0
    table = [{'map of': name, **{what: with_interval(f(heat, mask)) for what, f, mask in (('pointing at the square', pointing, masks['tag']), ('... within 2 pixels', pointing, near), ('mass on the square', mass_accuracy, masks['tag']),
                                                                                         ('pointing at the object', pointing, masks['filled']), ('mass on the object', mass_accuracy, masks['filled']))}} for name, heat in heats.items()]
    other, elsewhere = test.images.copy(), test.images.copy()
    other[:,TAG,TAG] = (SHORTCUT[(test.labels+1)%10]*255).astype(np.uint8)[:,None,None]
    elsewhere[:,TAG,TAG], elsewhere[:,26:31,26:31] = test.images[:,TAG,7:12], test.images[:,TAG,TAG]
    named = lambda images, labels: {name: with_interval((predict(cheat, normalised(images, 'shapes10-shortcut')).argmax(1) == labels).float()) for name, cheat in cheats.items()}
    reads = [{'called its class, if the square is': what, **named(images, labels)} for what, images, labels in (('as learned', test.images, y), ('that of the next class', other, (y+1)%10), ('in the opposite corner', elsewhere, y))]
    falls = {name: occlusion(cheat, x, y).flatten(1) for name, cheat in cheats.items()}
    hidden = [{'the logit falls by, if one hides': what, **{name: with_interval(f(fall)) for name, fall in falls.items()}} for what, f in (('the cell with the square', lambda fall: fall[:,0]), ('of the other 15 cells, the one that costs most', lambda fall: fall[:,1:].amax(1)))]
    return dict(table=table, reads=reads, hidden=hidden)


def randomisation(model, x, y, filled=None, method='gradcam'):
    "What is left of the maps after each part has been forgotten: means over drawings, each the mean of all pictures."
    signed = maps(model, x, y, method=method, relu=False)
    def look(raw):
        row = {name: abs(rank_correlation(signed, other)).mean() for name, other in (('correlation', raw), ('correlation of others', raw.roll(1, 0)))}
        if filled is not None:
            heat = upsample(raw).relu()
            for k, f in (('pointing', pointing), ('mass', mass_accuracy)): row |= {k: f(heat, filled).mean().item(), f'{k} of others': f(heat, filled.roll(1, 0)).mean().item(), f'{k} of the negative': f(upsample(-raw).relu(), filled).mean().item()}
        return row
    drawings = [[look(maps(net, x, y, method=method, relu=False)) for _, net in cascade(model, PARTS, seed)] for seed in range(DRAWINGS)]
    first = {k: [round(float(v), 5)]*3 for k, v in look(signed).items()}
    return [{'forgotten': 'nothing', **first}, *({'forgotten': part, **{k: some([d[i][k] for d in drawings]) for k in drawings[0][i]}} for i, part in enumerate(PARTS))]


def erase(model, x, y, **others):
    "Deletion and insertion by the map, at random and by `others`."
    raw = maps(model, x, y, relu=False)
    heats = {'Grad-CAM': upsample(raw), 'Grad-CAM, as measured': upsample(raw, centres=centres(model, x)), 'LayerCAM': upsample(layercam(model, x, y)), **others, "another picture's Grad-CAM": upsample(raw).roll(1, 0), 'random': torch.from_numpy(rng('faithfulness', 0).random((len(x),32,32)))}
    found = {}
    for name, heat in heats.items():
        found[name] = {}
        for way in ('deletion', 'insertion'):
            curve = erasing(model, x, y, heat, insert=way=='insertion')
            found[name][way] = dict(area=some(curve.mean(1)), curve=[round(v, 4) for v in curve.mean(0).tolist()])
    return found


def occlude(model, x, y, **others):
    "Rank correlation of the map with true occlusion of 16 cells."
    raw, falls = maps(model, x, y, relu=False), occlusion(model, x, y)
    heats = {'Grad-CAM': upsample(raw), 'Grad-CAM, as measured': upsample(raw, centres=centres(model, x)), 'LayerCAM': upsample(layercam(model, x, y)), **others, "another picture's Grad-CAM": upsample(raw).roll(1, 0)}
    return {name: some(rank_correlation(F.avg_pool2d(heat[:,None], 8)[:,0], falls)) for name, heat in heats.items()}


def reach(model, x, hold=False):
    "Change of cells by their distance from the hidden patch, in rings of 6 pixels."
    change = influence(model, x, hold)
    h, w = change.shape[1:]
    patch, cell = ((torch.cartesian_prod(torch.arange(a), torch.arange(b)) + .5)*32/a for a, b in ((4,4), (h,w)))
    ring = (torch.cdist(patch, cell)/6).round().long().flatten()
    return [change.flatten()[ring==r].mean().item() for r in range(6)]


def leak(layered, twin, x):
    columns = {'LayerNorm': reach(layered, x), 'LayerNorm, statistics held': reach(layered, x, True), 'BatchNorm': reach(twin, x)}
    return [{'distance': 6*r, **{k: round(v[r], 4) for k, v in columns.items()}} for r in range(6)]


def photographs(path, data_dir):
    "The tests that need no masks, on a network that learned CIFAR-10."
    test, about, net = cifar10(data_dir)[1], weights_metadata(path), load_weights(path)
    x, y = normalise(torch.from_numpy(test.images), about['mean'], about['std']), torch.from_numpy(test.labels)
    correct = predict(net, x).argmax(1) == y
    right = correct.nonzero()[:FEW,0]
    x, y = x[right], y[right]
    grid = maps(net, x[:2], y[:2]).shape[1:]
    known = references(test.images[right.numpy()], torch.ones(len(right),32,32, dtype=torch.bool), grid)
    others = {k: known[k] for k in ('edges', 'centre')}
    erased, occluded, forgotten = erase(net, x, y, **others), occlude(net, x, y, **others), randomisation(net, x, y)
    rows, columns = centres(net, x)
    return dict(width=about['width'], strides=about['strides'], test_accuracy=round(correct.float().mean().item(), 4), pictures=len(right), erasing=erased, randomisation=forgotten, identities=identities([net], x, y), leak=[{'distance': 6*r, 'LayerNorm': round(a, 4), 'LayerNorm, statistics held': round(b, 4)} for r, (a, b) in enumerate(zip(reach(net, x), reach(net, x, True)))],
                centres=dict(rows=rows.round(1).tolist(), columns=columns.round(1).tolist()), occlusion=occluded)


if __name__ == '__main__':
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    for flag in ('--weights', '--twins', '--train_twins', '--data_dir'): parser.add_argument(flag, metavar='DIR')
    parser.add_argument('--only', nargs='+', metavar='PART', help='such as identities or shortcut')
    parser.add_argument('--publish', action='store_true')
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.train_twins:
        for seed in TWIN_SEEDS:
            for name in KINDS.values():
                folder = home(args.train_twins)/f'{name}-{seed}'
                store(train(name, folder, seed=seed), folder.with_suffix('.safetensors'))
        sys.exit()
    warnings.filterwarnings('ignore', 'no positive evidence')
    nets = {name: load_weights(WEIGHTS/f'{name}.safetensors') for name in ('shapes10', 'shapes10-batch', 'shapes10-shortcut', 'shapes10-shortcut-zero-mean', 'shapes10-distractors', 'shapes10-coarse')}
    layered, twin, coarse = (nets[name] for name in KINDS.values())
    clean = test, x, y, masks = pictures('clean')
    few, fx, fy, fm = pictures('clean', FEW)
    known = {k: v for k, v in references(few.images, fm['filled'], (8,8)).items() if k in ('oracle', 'edges', 'centre')}

    def located():
        twins = {kind: [nets[name], *(load_weights(home(args.twins)/f'{name}-{seed}.safetensors') for seed in TWIN_SEEDS if args.twins)] for kind, name in KINDS.items()}
        by_kind = {kind: [where(net, clean) for net in several] for kind, several in twins.items()}
        by_seed = dict(placement=placement(by_kind)) if args.twins else {}
        return dict(localisation={kind: parts[0] for kind, parts in by_kind.items()}, **by_seed)
    parts = dict(
        about=lambda: dict(command='python nbs/experiments/faithful.py --publish', pictures=N, pictures_of_many_passes=FEW, drawings=DRAWINGS, torch=torch.__version__, machine=platform.machine(),
                           accuracy={name: round((predict(net, x).argmax(1) == y).float().mean().item(), 4) for name, net in nets.items()}),
        identities=lambda: dict(identities=identities([layered, twin, coarse], x, y)),
        localisation=located,
        classes=lambda: dict(classes=classes(nets['shapes10-distractors'])),
        shortcut=lambda: dict(shortcut=shortcut({'free filters': nets['shapes10-shortcut'], 'filters with mean zero': nets['shapes10-shortcut-zero-mean']}, layered)),
        randomisation=lambda: dict(randomisation=dict(area=round(fm['filled'].float().mean().item(), 4), shapes10=randomisation(layered, fx, fy, fm['filled']), layercam=randomisation(layered, fx, fy, fm['filled'], 'layercam'))),
        erasing=lambda: dict(erasing=dict(shapes10=erase(layered, fx, fy, **known))),
        occlusion=lambda: dict(occlusion=dict(shapes10=occlude(layered, fx, fy, **known))),
        leak=lambda: dict(leak=dict(shapes10=leak(layered, twin, fx))),
        cifar10=lambda: dict(cifar10=photographs(home(args.weights), args.data_dir)) if args.weights else {})
    if unknown := set(args.only or ()) - set(parts): parser.error(f'there is no part {", ".join(unknown)}: choose of {", ".join(parts)}')
    for name in args.only or parts:
        found = parts[name]()
        for k, v in found.items(): print(k, v, flush=True)
        if args.publish: write_json(RESULTS, {**(read_json(RESULTS) if RESULTS.exists() else {}), **found})
