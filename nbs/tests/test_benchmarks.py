"What the benchmarks measure is what they say, and the command tells what is wrong in a sentence."
import json, subprocess, sys, time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cifar_resnet import benchmarks, train
from cifar_resnet.benchmarks import (_full_batches, bench, ceiling, cold_start, compared, flops, in_turn, our_loop,
                                     plain_loop, run, where_time_goes)
from cifar_resnet.cli import bench_main as main
from cifar_resnet.data import Images, shapes10
from cifar_resnet.model import resnet18
from cifar_resnet.train import Recipe, Training

CPU = torch.device('cpu')
TINY = Recipe(dataset='shapes10', width=8, batch_size=32, epochs=1).filled()
TRAIN = replace(shapes10(n_train=200, n_test=10)[0], masks=None)
QUICK = dict(device='cpu', width=[8], batch_size=32, pairs=2, images=500, seconds=.05, memory=False)


@pytest.fixture(scope='module')
def found():
    told = []
    found = bench(**{**QUICK, 'width': [12, 8]}, tell=told.append)
    assert len(told) == 6 and 'width 12' in told[1] and 'width 8' in told[-1]
    return found


def test_what_is_found(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row['what'] for row in found['training']] == ['width 12', 'width 8'] and found['width'] == 8
    for row in found['training'] + found['augmentation']:
        assert list(row) == ['what', 'plain', 'ours', 'ratio', 'ratio_from', 'ratio_to']
        assert 0 < row['ratio_from'] <= row['ratio'] <= row['ratio_to'] and row['plain'] > 0 < row['ours']
    for row, backend in zip(found['training'], found['backends'], strict=True):
        assert (backend['backend'], backend['images_a_second'], backend['ratio'], backend['gpu_memory_bytes']) == ('eager', row['ours'], row['ratio'], None)
        assert backend['cold_start_seconds'] > 0
    assert (found['pairs'], found['batch'], found['device'], found['ceiling']['dtype']) == (2, 32, 'cpu', 'float32')
    assert found['versions']['torch'] and found['threads'] == torch.get_num_threads() and found['peak_gpu_memory_bytes'] is None


def test_shares_and_ceiling_follow_from_what_was_measured(found):
    w, c = found['where'], found['ceiling']
    assert sum(w['parts'].values()) == pytest.approx(w['batch_seconds']) and sum(w['shares'].values()) == pytest.approx(1)
    assert w['epoch_seconds'] == pytest.approx(450/32*w['batch_seconds'] + w['validation_seconds'])
    assert sum(w['operators'].values()) == pytest.approx(1) and w['operators']['convolutions, backward'] > w['operators']['norms'] > 0
    assert w['shares']['forward'] == pytest.approx(450/32*w['parts']['forward']/w['epoch_seconds'])
    assert c['flop_an_image'] == flops(Recipe(width=8)) and len(c['flop_a_second']) == 5
    assert c['training_flop_a_second'] == pytest.approx(found['training'][-1]['ours']*c['flop_an_image'])
    assert c['achieved'] == pytest.approx(c['training_flop_a_second']/max(c['flop_a_second'].values()))


def test_a_row_for_every_precision(monkeypatch):
    "What is asked for is ours; what else the device computes in stands beside it."
    monkeypatch.setattr(benchmarks, 'computes', lambda device, precision: precision != 'float16')
    best = dict(float32=1e9, bfloat16=4e9)
    monkeypatch.setattr(benchmarks, 'ceiling', lambda device, dtype, *args: dict(convolution=best[str(dtype).removeprefix('torch.')]))
    found = bench(**QUICK, precision='bf16')
    ours, other = found['precisions']
    assert (ours['precision'], other['precision'], ours['peak_memory_bytes']) == ('bfloat16', 'float32', None)
    assert ours['images_a_second'] == found['training'][0]['ours'] == found['backends'][0]['images_a_second'] and len(found['backends']) == 1
    for row in (ours, other): assert row['achieved'] == pytest.approx(row['images_a_second']*flops(Recipe(width=8))/best[row['precision']])
    assert found['ceiling']['dtype'] == 'bfloat16' and found['ceiling']['achieved'] == ours['achieved']


def test_memory_is_that_of_a_process_of_its_own():
    ballast = torch.ones(250_000_000)                        # a gigabyte that this process holds, and the other does not
    large, small = (benchmarks.memory_of(replace(TINY, batch_size=bs), 'float32') for bs in (512, 8))
    assert 1e8 < small < large - 5e7 and small < ballast.numel()*4 + 2e8


def test_the_parts_are_the_whole():
    spent = where_time_goes(Training(replace(TINY, width=16), TRAIN, device='cpu'), 8)
    assert .5 < 1 - spent['parts']['rest']/spent['batch_seconds'] < 1.5
    assert min(s for part, s in spent['parts'].items() if part != 'rest') > 0


def test_the_parts_do_what_learn_does():
    "Not the time but the work: from the same start the parts of a step lead to the same weights as `learn`."
    a, b = (Training(TINY, TRAIN, device='cpu') for _ in range(2))
    parts, stream = benchmarks._parts(a, _full_batches(a)), _full_batches(b)
    for _ in range(3):
        for part in parts.values(): part()
        b.learn(*next(stream))
    for p, q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)


def test_a_training_can_go_on_afterwards():
    t = Training(replace(TINY, batch_size=50), TRAIN, device='cpu')        # 180 images: three full batches and a rest
    sizes = [len(y) for _, y in zip(range(7), (y for _, y in _full_batches(t)))]
    assert sizes == [50]*7
    where_time_goes(t, 4)
    assert t.at == 0 and [row['epoch'] for row in t] == [1]


def test_a_look_at_some_held_out_images_stands_for_all(monkeypatch):
    seen = []
    monkeypatch.setattr(benchmarks, 'predict', lambda model, x: time.sleep(.02) or seen.append(len(x)))
    spent = where_time_goes(Training(replace(TINY, batch_size=4), TRAIN, device='cpu'), 1)
    assert set(seen) == {4} and spent['validation_seconds'] >= .02*20/4


def test_a_part_is_read_from_the_network_that_trains():
    "A training may have a faster form of its network, called `net`."
    t, called = Training(TINY, TRAIN, device='cpu'), []
    t.net = t.model.__class__(**t.model.config)
    t.net.load_state_dict(t.model.state_dict())
    t.net.register_forward_hook(lambda *args: called.append(1))
    where_time_goes(t, 2)
    assert len(called) >= 3


def test_both_loops_do_the_same_sum(monkeypatch):
    "On pictures of the mean colour no augmentation shows: then plain and ours have the same weights before, the same losses, and the same weights after."
    for module in (benchmarks, train): monkeypatch.setattr(module, 'mean_std', lambda images: ([128/255]*3, [.25]*3))
    blank, made = Images(np.full((200,32,32,3), 128, np.uint8), np.full(200, 3), TRAIN.classes), []
    monkeypatch.setattr(benchmarks, 'resnet18', lambda *args: made.append(resnet18(*args)) or made[-1])
    free = replace(TINY, filters='free')                      # as the plain loop has them
    plain, training = plain_loop(free, blank, CPU, workers=0), Training(free, blank, device='cpu')
    pairs = list(zip(made[0].parameters(), training.model.parameters(), strict=True))
    for p, q in pairs: assert torch.equal(p, q)
    before = [p.detach().clone() for p, _ in pairs]
    (_, theirs), (_, ours) = plain(4), our_loop(training)(4)
    torch.testing.assert_close(torch.stack(theirs), torch.stack(ours))
    assert len(ours) == 5 and ours[-1] < ours[0]
    for p, q, old in zip(*zip(*pairs), before):
        torch.testing.assert_close(p, q)
        assert not torch.equal(p, old) or not p.any()
    assert training.history == []


def test_our_loop_takes_any_number_of_steps():
    for images in (64, 65, 96):                     # whole batches, and a rest
        t = Training(replace(TINY, limit=images), TRAIN, device='cpu')
        assert len(our_loop(t)(7)[1]) == 8 and t.history == []


def test_the_clock():
    took = in_turn(dict(a=lambda n: (.01, []), b=lambda n: (.02, [])), 3, 1, 100)
    assert took == dict(a=[.01]*3, b=[.02]*3)
    asked = []
    in_turn(dict(a=lambda n: (asked.append(n) or .01, [])), 2, 1, 100); assert asked == [1, 100, 100]
    asked.clear(); in_turn(dict(a=lambda n: (asked.append(n) or .25, [])), 2, 1, 100); assert asked == [1, 4, 4]
    asked.clear(); in_turn(dict(a=lambda n: (asked.append(n) or 9, [])), 2, 1, 100); assert asked == [1, 1, 1]


def test_the_slower_way_is_the_slower():
    ways = dict(slow=partial(benchmarks._timed, partial(time.sleep, .02), device=CPU), fast=partial(benchmarks._timed, lambda: None, device=CPU))
    took = in_turn(ways, 3, .06, 50)
    assert min(took['slow']) >= .02 > min(took['fast'])


def test_pictures_repeat():
    pictures = benchmarks._pictures(6000)
    assert len(pictures) == 6000 and pictures.masks is None
    assert (pictures.images[5000:] == pictures.images[:1000]).all() and (pictures.labels[5000:] == pictures.labels[:1000]).all()


def test_the_order_changes_from_round_to_round():
    order = []
    in_turn({name: lambda n, name=name: (order.append(name) or 1., []) for name in 'ab'}, 3, 1, 1)
    assert order[2:] in (list('abbaab'), list('baabba'))


def test_ratios_are_those_of_a_round():
    row = compared('x', 10, plain=[1., 2., 3., 4.], ours=[4., 1., 3., 8.])
    assert row == dict(what='x', plain=4., ours=2.9, ratio=.75, ratio_from=.25, ratio_to=2.)


def test_a_cold_start_counts_from_the_recipe(monkeypatch):
    class Slow(Training):
        def __init__(self, *args, **kw): time.sleep(.1); super().__init__(*args, **kw)
    monkeypatch.setattr(benchmarks, 'Training', Slow)
    assert cold_start(TINY, TRAIN, CPU).seconds > .1


def test_a_backend_is_asked_for_by_its_name(monkeypatch):
    asked = []
    class Fake(Training):
        def __init__(self, *args, **kw): asked.append(kw['backend']); super().__init__(*args, **kw)
    monkeypatch.setattr(benchmarks, 'Training', Fake)
    monkeypatch.setattr(benchmarks, 'computes', lambda device, precision: precision == 'float32')
    found = bench(**{**QUICK, 'backends': ['rows', 'eager']})
    assert asked == ['rows', 'eager']
    assert [row['backend'] for row in found['backends']] == ['rows', 'eager'] and found['training'][0]['ours'] == found['backends'][0]['images_a_second']


def test_a_backend_that_there_is_not(capsys):
    assert main('--quick --backends fastest'.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith('cifar_bench: ')


@pytest.mark.parametrize('side, stride', [(8, 1), (9, 2), (16, 2)])
def test_arithmetic_by_hand(side, stride):
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(4*(-(-side//stride))**2, 5))
    out = (-(-side//stride))**2
    first, second, head = out*3*6*9, out*6*4*9, 4*out*5
    assert flops(net, side) == 2*(2*first + 3*second + 3*head)


def test_counting_changes_nothing():
    model = resnet18(width=8).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert flops(model) == flops(Recipe(width=8)) == flops(Recipe(dataset='shapes10', width=8))
    assert not model.training and all(p.grad is None and p.device == CPU for p in model.parameters())
    for k, v in model.state_dict().items(): assert torch.equal(v, before[k])


def test_the_ceiling_is_that_of_the_networks_convolutions(monkeypatch):
    seen = []
    monkeypatch.setattr(benchmarks, '_fastest', lambda work, device, budget: seen.append(getattr(work, 'func', None) and (work.func, work.args[0])) or 1.)
    model, shapes = resnet18(width=8), set()
    rates = ceiling(CPU, torch.bfloat16, bs=4, width=8)
    assert list(rates) == ['matrix product, 2048×2048', *(f'convolution of stage {i}' for i in (1,2,3,4))]
    hooks = [m.register_forward_hook(lambda m, x, y: shapes.add((tuple(m.weight.shape), tuple(x[0].shape)))) for m in model.modules() if isinstance(m, nn.Conv2d)]
    model(torch.randn(4,3,32,32))
    for layer, x in seen[1:]:
        assert (tuple(layer.weight.shape), tuple(x.shape)) in shapes
        assert {layer.weight.dtype, x.dtype} == {torch.bfloat16} and x.is_contiguous(memory_format=torch.channels_last)
    assert len(hooks) == 20


def test_the_fastest_of_several_tries():
    waits = iter([0, .05, .001, .05, .05, .05])
    a = torch.randn(10, 10)
    rate = benchmarks._fastest(lambda: time.sleep(next(waits)) or a @ a, CPU, 0)
    assert 2*10**3/.05 < rate <= 2*10**3/.001


def test_the_clock_waits_for_the_gpu(monkeypatch):
    waited, device = [], SimpleNamespace(type='cuda')
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda d: waited.append(len(steps)))
    steps = []
    _, seen = benchmarks._timed(lambda: steps.append(1), 3, device)
    assert waited == [5, 8] and len(seen) == 8


def shell(*argv, **kw):
    code = 'import sys; from cifar_resnet.cli import bench_main; sys.exit(bench_main())'
    return subprocess.run([sys.executable, '-c', code, *map(str, argv)], capture_output=True, text=True, timeout=120, **kw)


def test_the_command(tmp_path):
    done = shell('--quick', '--device', 'cpu', '--out', 'new/found.json', '--publish', 'results', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path/'new'/'found.json').read_text())
    assert found == json.loads((tmp_path/'results'/'speed_cpu.json').read_text())
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['found.json', 'new', 'results', 'speed_cpu.json']
    assert found['command'] == 'cifar_bench --quick --device cpu --out new/found.json --publish results'
    for said in ('images a second', 'backends', 'where the time of an epoch goes', 'the ceiling', 'the training reaches', 'augmentation', 'backward'): assert said in done.stdout
    assert f"{found['training'][0]['ours']:,.4g}" in done.stdout and max(map(len, done.stdout.splitlines())) < 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU is visible here')
def test_the_command_on_a_gpu(tmp_path):
    assert main(['--quick', '--device', 'cuda', '--publish', str(tmp_path)]) == 0
    found = json.loads((tmp_path/'speed_cuda.json').read_text())
    assert found['device'] == 'cuda:0' and found['ceiling']['dtype'] in ('bfloat16', 'float16') and found['peak_gpu_memory_bytes'] > 0
    assert found['backends'][0]['gpu_memory_bytes'] > 0 and sum(found['where']['shares'].values()) == pytest.approx(1)


def test_a_typed_flag_wins_over_quick(monkeypatch, capsys):
    asked = {}
    def fake(**kw): asked.update(kw); raise ValueError('enough')
    monkeypatch.setattr(benchmarks, 'bench', fake)
    assert main('--quick --width 16 --pairs 3 --backends a b'.split()) == 2
    del asked['tell']
    assert asked == dict(width=[16], pairs=3, backends=['a', 'b'], batch_size=32, images=500, seconds=.1, memory=False)
    asked.clear(); main([])
    assert list(asked) == ['tell']


def test_run_takes_the_flags_as_keywords(tmp_path, monkeypatch, capsys, found):
    asked = {}
    monkeypatch.setattr(benchmarks, 'bench', lambda **kw: asked.update(kw) or found)
    out, folder = tmp_path/'new'/'found.json', tmp_path/'results'
    flags = dict(device='cpu', width=None, batch_size=None, pairs=2, precision=None, backends=None)
    assert run(**flags, quick=False, out=out, publish=folder, argv=['--pairs', '2']) == 0
    assert asked.pop('tell') and asked == dict(device='cpu', pairs=2)
    assert json.loads(out.read_text()) == json.loads((folder/'speed_cpu.json').read_text()) == dict(command='cifar_bench --pairs 2', **found)
    assert capsys.readouterr().out == benchmarks._report(found) + '\n'
    with pytest.raises(ValueError, match='choose a file for --out'): run(out=folder)


@pytest.mark.parametrize('argv, said', [
    ('--width 0', 'width must be positive'),
    ('--width 64 100000', 'width must be at most'),
    ('--batch_size 0', 'batch_size must be positive'),
    ('--batch_size 20000', 'batch_size must be at most 15,000 here'),
    ('--quick --batch_size 200', 'batch_size must be at most 150 here'),
    ('--pairs 0', 'pairs must be at least 1'),
    ('--pairs -2', 'pairs must be at least 1'),
    ('--device gpu', "device 'gpu' cannot be used"),
    ('--out folder', 'choose a file for --out'),
    ('--out file/found.json', 'file'),
    ('--publish file', 'file'),
])
def test_bad_flags(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmarks, 'in_turn', None)         # a flag that were accepted would fail here, not after minutes
    (tmp_path/'folder').mkdir(); (tmp_path/'file').write_text('x')
    assert main(argv.split() if '--device' in argv else [*argv.split(), '--device', 'cpu']) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count('\n') == 1 and err.startswith('cifar_bench: ') and not out


@pytest.mark.parametrize('argv', ['--width wide', '--bogus 1', '--backends', '--pair 3', '--batch_size 1.5'])
def test_flags_that_do_not_parse(argv, capsys):
    with pytest.raises(SystemExit) as stop: main(argv.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count('\n') == 1 and '--help lists the flags' in err
