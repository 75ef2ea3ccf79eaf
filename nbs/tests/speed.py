"""Images a second on this CPU: our loop beside the plain one, batched augmentation beside a DataLoader.

    python nbs/tests/speed.py              # print the tables
    python nbs/tests/speed.py --publish    # and write them to nbs/results/speed_cpu.json

The plain loop is what a tutorial would write: eager fp32 in NCHW, Adam as it comes, albumentations in a DataLoader with
two workers. Both ways are timed in turn, `PAIRS` times; the tables hold medians, and the median of the ratios of pairs.
"""
import os, platform, sys, time
from pathlib import Path
from statistics import median

import albumentations as A
import torch
import torch.nn.functional as F
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader, Dataset

from cifar_resnet.augment import albumentations_batches, batches, draws, plain_augmentation
from cifar_resnet.core import rng
from cifar_resnet.data import mean_std, shapes10
from cifar_resnet.model import resnet18
from cifar_resnet.runs import write_json
from cifar_resnet.train import Recipe, Training

PAIRS, BATCH, WORKERS = 7, 128, 2
DATA = shapes10(n_train=5000)[0]
MEAN, STD = mean_std(DATA.images)


class Plain(Dataset):
    "One image at a time, by albumentations' own random numbers."
    def __init__(self): self.compose = A.Compose([plain_augmentation(MEAN, STD), ToTensorV2()])
    def __len__(self): return len(DATA)
    def __getitem__(self, i): return self.compose(image=DATA.images[i])['image'], int(DATA.labels[i])


def plain_loop(width):
    "A function that trains on `n` batches in the plain way and returns images a second."
    torch.manual_seed(0)
    model = resnet18(width=width)
    opt = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    def run(n):
        stream = iter(DataLoader(Plain(), BATCH, shuffle=True, num_workers=WORKERS))
        def step():
            x, y = next(stream)
            loss = F.cross_entropy(model(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
        step()
        start = time.perf_counter()
        for _ in range(n): step()
        return n*BATCH/(time.perf_counter() - start)
    return run


def our_loop(width):
    "The same by `Training`."
    training = Training(Recipe(dataset='shapes10', width=width, batch_size=BATCH, epochs=10_000), DATA, device='cpu')
    def run(n):
        if training.at + n + 1 >= len(training.losses): training.open_epoch()        # keep validation out of it
        training.step()
        start = time.perf_counter()
        for _ in range(n): training.step()
        return n*BATCH/(time.perf_counter() - start)
    return run


def augmentation(how, **kw):
    "Augment `n` batches and return images a second."
    args = torch.from_numpy(DATA.images), torch.from_numpy(DATA.labels), torch.from_numpy(draws(len(DATA), 0, 0))
    def run(n):
        order = torch.from_numpy(rng('order', 0, 0).permutation(len(DATA))[:n*BATCH])
        stream = how(args[0], args[1], order, args[2], BATCH, MEAN, STD, **kw)
        next(stream)                                                                 # the workers have started
        start = time.perf_counter()
        done = sum(len(y) for _, y in stream)
        return done/(time.perf_counter() - start)
    return run


def compare(what, plain, ours, n):
    "A row with the medians of interleaved pairs."
    plain(1), ours(1)
    pairs = [(plain(n), ours(n)) for _ in range(PAIRS)]
    row = dict(what=what, plain=round(median(p for p,_ in pairs), 1), ours=round(median(o for _,o in pairs), 1), ratio=round(median(o/p for p,o in pairs), 3),
               ratio_from=round(min(o/p for p,o in pairs), 3), ratio_to=round(max(o/p for p,o in pairs), 3))
    print(row, flush=True)
    return row


if __name__ == '__main__':
    if sys.argv[1:] not in ([], ['--publish']): sys.exit(__doc__)
    aug = compare('images a second', augmentation(albumentations_batches, workers=WORKERS), augmentation(batches), 32)
    loops = [compare(f'width {width}', plain_loop(width), our_loop(width), n) for width, n in ((16, 14), (64, 3))]
    if sys.argv[1:]:
        about = dict(command='python nbs/tests/speed.py --publish', pairs=PAIRS, batch=BATCH, workers=WORKERS, threads=torch.get_num_threads(), torch=torch.__version__, machine=platform.machine(), cpus=os.cpu_count())
        write_json(Path(__file__).parent.parent/'results'/'speed_cpu.json', dict(**about, augmentation=[aug], training=loops))
