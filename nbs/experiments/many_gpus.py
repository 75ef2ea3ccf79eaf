"""One run on several GPUs, on paper: the arithmetic of a step, dealt out, and the gradients' way around a ring.

    python nbs/experiments/many_gpus.py       # into nbs/results/many_gpus.json
"""
from pathlib import Path

from cifar_resnet.benchmarks import flops
from cifar_resnet.model import resnet18
from cifar_resnet.recipe import Recipe
from cifar_resnet.runs import read_json, write_json

RESULTS = Path(__file__).parent.parent/'results'
BATCH = 512
PEAK = 989e12                       # FLOP/s of an H100 or H200 in bfloat16, dense, by NVIDIA's data sheet
SHARE = .3                          # of it that a step reaches: a guess, for no GPU was measured
LINKS = {                           # bytes a second in one direction, by data sheets
    'NVLink 4': 450e9,
    'PCIe 4.0 x16': 32e9,
    'network of 10 Gbit/s': 1.25e9,
}


def step_on_one():
    "Seconds of a step on one GPU, and where that is from: measured, if `cifar_bench --publish` ever was on a GPU."
    path = RESULTS/'speed_cuda.json'
    if path.exists():
        speeds = {row['what']: row['ours'] for row in read_json(path)['training']}
        if 'width 64' in speeds: return BATCH/speeds['width 64'], 'measured: speed_cuda.json'
    return BATCH*flops(Recipe())/(SHARE*PEAK), f'{SHARE:.0%} of a peak of {PEAK/1e12:.0f} TFLOP/s'


def ring(gpus, size, bandwidth):
    "Seconds of an all-reduce: each GPU sends all but one of `gpus` parts, twice."
    return 2*(gpus - 1)/gpus*size/bandwidth


def main():
    one, where = step_on_one()
    size = 4*sum(p.numel() for p in resnet18().parameters())                         # gradients are float32
    rows = []
    for n in (1, 2, 4, 8):
        steps = {link: one/n + ring(n, size, bandwidth) for link, bandwidth in LINKS.items()}     # nothing overlaps
        rows.append(dict(
            GPUs=n, images_each=BATCH//n, computing_ms=1000*one/n,
            **{f'times as fast, {link}': one/step for link, step in steps.items()}))
    write_json(RESULTS/'many_gpus.json', dict(
        estimated=True, command='python nbs/experiments/many_gpus.py', batch=BATCH, gradient_bytes=size,
        step_on_one=where, bytes_a_second=LINKS, table=rows))


if __name__ == '__main__': main()
