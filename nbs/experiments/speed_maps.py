"""What a Grad-CAM map costs: ours beside captum, pytorch-grad-cam and torch-cam, and are they the same maps?

    pip install -e '.[bench]'                   # the three peers
    python nbs/experiments/speed_maps.py              # print the tables
    python nbs/experiments/speed_maps.py --publish    # and write nbs/results/speed_maps_cpu.json (or _cuda.json)

Full network (width 64), batches of 64. All ways take turns on each of `ROUNDS` batches, each time in another order;
a table holds medians of seconds and of the ratios to the forward pass (without gradients) of the same round. For ten
classes captum and pytorch-grad-cam are called ten times; torch-cam, which separates forward and backward, runs forward
once. About ten minutes on two cores.
"""
import os, platform, sys, time, warnings
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchcam.methods import GradCAM as TorchCAM

from cifar_resnet.augment import normalise
from cifar_resnet.core import pick_device, rng, seeded
from cifar_resnet.data import mean_std, shapes10
from cifar_resnet.gradcam import gradcam
from cifar_resnet.model import resnet18
from cifar_resnet.runs import write_json

sys.path.append(str(Path(__file__).parents[1]/'tests'))                 # helpers that tests share
from live_memory import peak

BATCH, ROUNDS, ALL, CLASSES = 64, 8, 10_000, 10


class Ways:
    "Every way to a signed map (B,h,w) of class c, or (B,10,h,w) of all classes, of one model and its last block."
    def __init__(self, model):
        self.model, self.layer = model, model.stages
        self.captum = LayerGradCam(model, self.layer)
    def forward(self, x):
        with torch.no_grad(): return self.model(x)
    def ours(self, x, c=0): return gradcam(self.model, x, c, self.layer, relu=False)
    def captums(self, x, c=0): return self.captum.attribute(x, c)[:,0].detach()
    def grad_cams(self, x, c=0):                       # maps of the picture's size, between 0 and 1
        with GradCAM(self.model, [self.layer]) as cam: return cam(x, [ClassifierOutputTarget(c)]*len(x))
    def torchcams(self, x, c=0):
        with TorchCAM(self.model, self.layer) as cam: return cam([c]*len(x), self.model(x), normalized=False)[0]
    def ours_all(self, x): return gradcam(self.model, x, 'all', self.layer, relu=False)
    def captums_all(self, x): return torch.stack([self.captums(x, c) for c in range(CLASSES)], 1)
    def grad_cams_all(self, x):
        with GradCAM(self.model, [self.layer]) as cam:
            return [cam(x, [ClassifierOutputTarget(c)]*len(x)) for c in range(CLASSES)]
    def torchcams_all(self, x):
        with TorchCAM(self.model, self.layer) as cam:
            scores = self.model(x)
            return [cam([c]*len(x), scores, normalized=False, retain_graph=True)[0] for c in range(CLASSES)]


NAMES = dict(
    forward=('forward pass only', 0),
    ours=('cifar_resnet', 1),
    captums=('captum', 1),
    grad_cams=('pytorch-grad-cam', 1),
    torchcams=('torch-cam', 1),
    ours_all=('cifar_resnet', CLASSES),
    captums_all=('captum', CLASSES),
    grad_cams_all=('pytorch-grad-cam', CLASSES),
    torchcams_all=('torch-cam', CLASSES),
)


def seconds(f, x):
    if x.is_cuda: torch.cuda.synchronize()
    start = time.perf_counter()
    f(x)
    if x.is_cuda: torch.cuda.synchronize()
    return time.perf_counter() - start


def most_memory(f, x):
    "The most bytes at once: counted by tensors on a CPU, by the allocator on a GPU."
    if not x.is_cuda: return peak(lambda: f(x))
    before = torch.cuda.memory_allocated(); torch.cuda.reset_peak_memory_stats()
    f(x)
    return torch.cuda.max_memory_allocated() - before


def unscaled(model, x, c):
    "The map of pytorch-grad-cam before it scales and enlarges it."
    with GradCAM(model, [model.stages]) as cam:
        cam(x, [ClassifierOutputTarget(c)]*len(x))
        kept = cam.activations_and_grads
        acts, grads = kept.activations[0].cpu().numpy(), kept.gradients[0].cpu().numpy()
        return torch.from_numpy(cam.get_cam_image(x, model.stages, None, acts, grads))


def same_maps(model, x):
    "The largest difference to each peer, relative to the largest value of the peer's map."
    ways, found = Ways(model), []
    for name in ('captum', 'pytorch-grad-cam', 'torch-cam'):
        worst = 0.
        for c in range(CLASSES):
            mine = ways.ours(x, c)
            if name == 'captum': theirs = ways.captums(x, c)
            elif name == 'torch-cam': mine, theirs = mine.relu(), ways.torchcams(x, c)
            else: theirs = unscaled(model, x, c)
            theirs = theirs.to(mine.device)
            worst = max(worst, ((mine - theirs).abs().max()/theirs.abs().max().clamp_min(1e-12)).item())
        found.append({'peer': name, 'width': model.config['width'], 'maps': len(x)*CLASSES,
                      'largest relative difference': float(f'{worst:.1e}')})
    return found


def measure(model, batches):
    "Rows of medians over the batches."
    ways, rows = Ways(model), []
    for name in NAMES: getattr(ways, name)(batches[0])                                      # warm
    took = {name: [] for name in NAMES}
    for i, x in enumerate(batches):
        for name in rng('speed_maps', i).permutation(list(NAMES)): took[name].append(seconds(getattr(ways, name), x))
        print(f'batch {i+1}', {k: round(v[-1], 2) for k, v in took.items()}, flush=True)
    base = most_memory(ways.forward, batches[0])
    for name, (who, classes) in NAMES.items():
        ratios = sorted(t/f for t, f in zip(took[name], took['forward']))
        rows.append({
            'who': who,
            'classes': classes,
            'seconds a batch': round(median(took[name]), 4),
            'times a forward pass': round(median(ratios), 3),
            'from': round(ratios[0], 3),
            'to': round(ratios[-1], 3),
            "memory, times a forward pass's": round(most_memory(getattr(ways, name), batches[0])/base, 3),
        })
    return rows


def at_length(model, x):
    "Ours and the forward pass on many images, batch by batch in turn."
    ways = Ways(model)
    took = [(seconds(ways.forward, b), seconds(ways.ours_all, b)) for b in x.split(BATCH)]
    forward, maps = (sum(t) for t in zip(*took))
    return dict(images=len(x), forward_seconds=round(forward, 1), all_maps_seconds=round(maps, 1),
                ratio=round(maps/forward, 3), median_ratio=round(median(m/f for f, m in took), 3))


if __name__ == '__main__':
    if sys.argv[1:] not in ([], ['--publish']): sys.exit(__doc__)
    warnings.filterwarnings('ignore')
    device = pick_device('auto')
    test = shapes10(n_train=10, n_test=ALL)[1]
    x = normalise(torch.from_numpy(test.images), *mean_std(test.images)).to(device)
    with seeded('init', 0): model = resnet18().eval().to(device)
    found = dict(
        command='python nbs/experiments/speed_maps.py --publish',
        batch=BATCH, rounds=ROUNDS,
        threads=torch.get_num_threads(), cpus=os.cpu_count(), machine=platform.machine(), device=str(device),
        versions={p: version(p) for p in ('torch', 'captum', 'grad-cam', 'torchcam')},
        not_run=[] if device.type == 'cuda' else ['GPU'],
        maps=same_maps(model, x[:BATCH]),
        table=measure(model, x[:BATCH*ROUNDS].split(BATCH)),
        all_images=at_length(model, x))
    for key in ('maps', 'table', 'all_images'): print(found[key])
    if sys.argv[1:]: write_json(Path(__file__).parent.parent/'results'/f'speed_maps_{device.type}.json', found)
