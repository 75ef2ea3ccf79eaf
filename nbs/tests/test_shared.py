"One batch shared by two processes: the same training as in one, up to the order of additions. And the plain network beside its faster twins."
import os, shutil, subprocess, sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cifar_resnet.cli import main
from cifar_resnet.data import shapes10
from cifar_resnet.model import by_rows, resnet18
from cifar_resnet.runs import read_json
from cifar_resnet.train import Recipe, Training, load_run

FLAGS = '--dataset shapes10 --recipe best --optimiser adamw --width 4 --epochs 3 --batch_size 20 --limit 75 --device cpu'.split()      # last batches of 15: 8 and 7
COMMAND = shutil.which('cifar_resnet', path=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])) or 'cifar_resnet'        # this environment's own, if it has one


def torchrun(folder, *flags, processes=2, **kw):
    "The command in several processes, started as the README does."
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}', '--no-python', COMMAND, *FLAGS, '--out', str(folder), *flags]
    return subprocess.Popen(command, env={**os.environ, 'OMP_NUM_THREADS': '1'}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)


def same_history(run, other):
    for a, b in zip(run.history, other.history, strict=True):
        for k in ('train_loss', 'valid_loss', 'lr'): assert a[k] == pytest.approx(b[k], rel=1e-3)
    return True


def close(run, other):
    "Two runs with the same history and weights, to rounding."
    assert same_history(run, other)
    for a, b in zip(run.model.state_dict().values(), other.model.state_dict().values(), strict=True): assert (a - b).norm() < .02*b.norm() + 1e-3
    return True


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp('alone')/'run'
    assert main([*FLAGS, '--out', str(folder)]) == 0
    return load_run(folder)


def test_two_processes_train_as_one(tmp_path, alone):
    process = torchrun(tmp_path/'run')
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    shared = load_run(tmp_path/'run')
    assert close(shared, alone)
    assert shared.metrics['processes'] == 2 and alone.metrics['processes'] == 1
    assert said.count('test accuracy') == 1                                        # one of them reports


def test_two_processes_share_muon(tmp_path):
    "It rounds its steps to 16 bits, so that weights agree less closely than losses do."
    assert main([*FLAGS, '--optimiser', 'muon', '--out', str(tmp_path/'alone')]) == 0
    process = torchrun(tmp_path/'run', '--optimiser', 'muon')
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert same_history(load_run(tmp_path/'run'), load_run(tmp_path/'alone'))


def test_two_processes_stop_together_and_go_on(tmp_path, alone):
    process = torchrun(tmp_path/'run', '--save_every_s', '0', '--budget_s', '.5')
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and 'with --resume goes on' in said, said
    assert not read_json(tmp_path/'run'/'run.json')['finished']
    process = torchrun(tmp_path/'run', '--resume')
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert close(load_run(tmp_path/'run'), alone)


@pytest.mark.parametrize('flags, message', [(['--norm', 'batch'], 'norm batch looks at the whole batch'), (['--limit', '61'], 'a batch of 1 cannot be shared by 2 processes')])
def test_what_cannot_be_shared_is_refused(flags, message, tmp_path):
    process = torchrun(tmp_path/'run', *flags)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and message in said.split('Traceback')[0], said          # torchrun adds a traceback of its own
    assert not (tmp_path/'run'/'run.json').exists()


DATA = shapes10(n_train=200)[0]
RECIPE = Recipe(dataset='shapes10', width=8, epochs=1, batch_size=40, limit=100)       # the last batch is smaller


@pytest.mark.parametrize('backend', ['rows', 'compile', 'rows+compile'])
def test_engines_train_as_the_plain_network_does(backend):
    if 'compile' in backend and not shutil.which('c++'): pytest.skip('no C++ compiler is here to compile the network with')
    plain, quick = (Training(RECIPE, DATA, device='cpu', backend=e) for e in ('eager', backend))
    losses = [[t.step().item() for _ in range(3)] for t in (plain, quick)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert plain.history[0]['valid_loss'] == pytest.approx(quick.history[0]['valid_loss'], rel=1e-2)
    assert plain.model.state_dict().keys() == quick.model.state_dict().keys()          # what is saved knows nothing of backends


def test_an_unknown_engine_is_refused(capsys, tmp_path):
    assert main([*FLAGS, '--out', str(tmp_path/'run'), '--backend', 'warp']) == 2
    assert "there is no backend 'warp'" in capsys.readouterr().err and not (tmp_path/'run').exists()


def test_a_smaller_batch_goes_through_the_plain_network():
    "Else a compiled network is compiled again for it, and is slower from then on."
    training, seen = Training(RECIPE, DATA, device='cpu'), []
    training.net = lambda x: seen.append(len(x)) or training.model(x)
    for _ in range(3): training.step()
    assert seen == [40, 40] and training.epoch == 1


def test_the_row_norm_works_outside_autocast(monkeypatch):
    "On a GPU autocast would let it return 32 bits."
    seen, usual = [], F.layer_norm
    monkeypatch.setattr(F, 'layer_norm', lambda *args, **kw: seen.append(torch.is_autocast_enabled('cpu')) or usual(*args, **kw))
    with torch.autocast('cpu', torch.bfloat16): by_rows(resnet18(width=2))(torch.rand(1,3,32,32))
    assert seen == [False]*20
