"A signal in the middle of a run: a usable checkpoint is left, and --resume ends with the very bits of an uninterrupted run."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TINY = '--dataset shapes10 --width 8 --epochs 6 --limit 640 --batch_size 32 --device cpu'.split()
COMMAND = Path(sys.executable).parent/'cifar_resnet'
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}


def run(*argv): return subprocess.run([COMMAND, *TINY, *map(str, argv)], capture_output=True, text=True, timeout=300, env=ENV)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    assert run('--out', out).returncode == 0
    return out


def same_bits(a, b):
    "Weights and logits of two runs are equal to the bit (the files themselves may order their headers differently)."
    for name in ('weights.safetensors', 'logits.safetensors'):
        one, other = load_file(a/name), load_file(b/name)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), name


def stop_midway(out, number):
    "Start a run, send a signal once its first epoch is written -> exit code and stderr."
    process = subprocess.Popen([COMMAND, *TINY, '--out', out], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENV)
    history, deadline = out/'history.csv', time.monotonic() + 120
    while not (history.exists() and history.read_text().count('\n') >= 2):
        assert process.poll() is None and time.monotonic() < deadline, 'the run ended before it could be stopped'
        time.sleep(.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed(number, whole, tmp_path):
    out = tmp_path/'run'
    code, err = stop_midway(out, number)
    assert code == 130 and 'with --resume goes on' in err
    assert list((out/'checkpoints').glob('*.pt')) and not json.loads((out/'run.json').read_text())['finished']

    refused = run('--out', out)
    assert refused.returncode == 2 and 'add --resume' in refused.stderr

    assert run('--out', out, '--resume').returncode == 0
    same_bits(out, whole)
    without_seconds = lambda folder: [line.rsplit(',', 1)[0] for line in (folder/'history.csv').read_text().splitlines()]
    assert without_seconds(out) == without_seconds(whole)
    assert json.loads((out/'run.json').read_text())['resumed_at']


def test_killed_before_the_first_checkpoint(whole, tmp_path):
    "SIGKILL in the first minute: nothing to resume from, so --resume begins anew in the same folder."
    out = tmp_path/'run'
    assert stop_midway(out, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not list((out/'checkpoints').glob('*.pt'))
    assert run('--out', out, '--resume').returncode == 0
    same_bits(out, whole)
