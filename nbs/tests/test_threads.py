"Trainings in threads of one process, as the workers of some engines have them: the same bits as alone."
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cifar_resnet.core import seeded, torch_rng
from cifar_resnet.data import shapes10
from cifar_resnet.model import NORMS, draw_weights, resnet18
from cifar_resnet.pictures import read_picture
from cifar_resnet.scale import sweep
from cifar_resnet.train import Recipe, Training
from compared import same

TINY = dict(dataset='shapes10', width=2, epochs=2, limit=80, batch_size=40)


def trust(what): return pytest.mark.trust('many machines', what)


@contextmanager
def hurried(seconds=1e-5):
    "Inside the block threads take turns much more often than usual."
    usual = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try: yield
    finally: sys.setswitchinterval(usual)


def at_once(*functions):
    "What the functions return, each called in a thread of its own, all of them begun together."
    start = threading.Barrier(len(functions))
    def after_the_others(f):
        start.wait()
        return f()
    with hurried(), ThreadPoolExecutor(len(functions)) as pool: return [f.result() for f in [pool.submit(after_the_others, f) for f in functions]]


@lru_cache
def images(): return shapes10()[0]
def built(seed): return Training(Recipe(**TINY, seed=seed), images(), device='cpu', precision='fp32')
def first_weights(seed): return {k: v.clone() for k, v in built(seed).model.state_dict().items()}


@trust('two threads of a worker begin with the weights of two processes')
def test_first_weights_in_threads(cases):
    "Two trainings and a third thread that draws random numbers all the while, as a table of the model does."
    cases(20)
    alone = {seed: first_weights(seed) for seed in (0, 1)}
    def noise():
        for _ in range(200): torch.rand(10)
    for _ in range(20):
        *found, _ = at_once(lambda: first_weights(0), lambda: first_weights(1), noise)
        assert same(found[0], alone[0]) and same(found[1], alone[1])


@trust('two threads of a worker begin with the weights of two processes')
@pytest.mark.parametrize('norm', NORMS)
def test_weights_are_those_of_pytorch(norm):
    "Drawn by a generator of their own they are, to the bit, what PyTorch's layers draw by themselves."
    with seeded('init', 3): usual = resnet18(norm, width=32)
    with torch.device('meta'): model = resnet18(norm, width=32)
    draw_weights(model.to_empty(device='cpu'), torch_rng('init', 3))
    assert same(model.state_dict(), usual.state_dict())


@trust('a training leaves the random numbers of others alone')
def test_the_common_generator_is_left_alone(cases):
    "Not even for a moment is it seeded: another thread looks at it all the while."
    cases(30)
    before, done = torch.get_rng_state(), threading.Event()
    def watch():
        while not done.is_set(): assert torch.equal(torch.get_rng_state(), before)
    def build():
        try:
            for seed in range(30): built(seed)
        finally: done.set()
    at_once(watch, build)


@trust('a sweep in two threads gives the bits of one in turn')
def test_a_sweep_in_threads(tmp_path, cases):
    cases(8)
    recipes = {'strict': TINY, 'mirrored': {**TINY, 'flip': 'random', 'average': 1}}
    alone = sweep(recipes, [0, 1], tmp_path/'alone', ['cpu'])
    for i in range(2):
        with hurried(), ThreadPoolExecutor(2) as pool: found = sweep(recipes, [0, 1], tmp_path/str(i), executor=pool)
        assert len(found['runs']) == len(alone['runs']) == 4 and not found['failed']
        for row in alone['runs']:
            name = f'{row["name"]}-{row["seed"]}'
            a, b = (load_file(tmp_path/top/name/'weights.safetensors') for top in ('alone', str(i)))
            assert same(a, b), name


@trust('a picture that is too large is refused in each thread')
def test_pictures_in_threads(tmp_path, monkeypatch, cases):
    "What is a warning elsewhere is an error while a picture is decoded: that must hold in two threads at once, too."
    cases(100)
    large, small = (tmp_path/f'{name}.png' for name in ('large', 'small'))
    for path, side in ((large, 120), (small, 60)): Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100*100)
    def refused():
        try: read_picture(large)
        except ValueError as e: return 'is too large' in str(e)
    assert refused()
    for _ in range(50): assert at_once(refused, lambda: read_picture(small), refused)[::2] == [True, True]
