"""The same recipe under conditions that stand for other machines: which bits change, and how much that is.

    python nbs/experiments/across_machines.py              # print the table
    python nbs/experiments/across_machines.py --publish    # and write it to nbs/results/across_machines.json
"""
import os, pickle, subprocess, sys
from pathlib import Path

RECIPE = dict(dataset='shapes10', width=8, epochs=8)
ONE = dict(OMP_NUM_THREADS='1')
CONDITIONS = {
    '1 thread': ONE,
    'the same again': ONE,
    '2 threads': dict(OMP_NUM_THREADS='2'),
    '1 thread, instructions up to AVX2': dict(ONE, ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2'),
    '1 thread, instructions up to SSE4.1': dict(ONE, ATEN_CPU_CAPABILITY='default', ONEDNN_MAX_CPU_ISA='SSE41'),
}


def train():
    "First batch, final weights and history of a run, pickled to stdout."
    import torch
    from cifar_resnet.data import shapes10
    from cifar_resnet.train import Recipe, Training
    training = Training(Recipe(**RECIPE), shapes10()[0], device='cpu')
    first = training.step().item()
    rows = list(training)
    weights = torch.cat([p.detach().flatten() for p in training.model.parameters()]).numpy()
    last, capability = rows[-1], torch.backends.cpu.get_cpu_capability()
    sys.stdout.buffer.write(pickle.dumps((first, weights, last['valid_loss'], last['valid_accuracy'], capability)))


def trained(env):
    "What `train` gives in a process with these environment variables."
    command = [sys.executable, __file__, 'train']
    return pickle.loads(subprocess.run(command, env={**os.environ, **env}, stdout=subprocess.PIPE, check=True).stdout)


def publish(table):
    import platform, torch
    from cifar_resnet.runs import write_json
    about = dict(command='python nbs/experiments/across_machines.py --publish', recipe=RECIPE,
                 torch=torch.__version__, machine=platform.machine())
    write_json(Path(__file__).parent.parent/'results'/'across_machines.json', dict(**about, table=table))


if __name__ == '__main__':
    if sys.argv[1:] == ['train']: sys.exit(train())
    if sys.argv[1:] not in ([], ['--publish']): sys.exit(__doc__)
    table, usual = [], None
    for name, env in CONDITIONS.items():
        first, weights, loss, accuracy, capability = trained(env)
        usual = usual or (first, weights)
        table.append({
            'condition': name,
            'instructions': capability,
            'same bits': 'yes' if (weights == usual[1]).all() else 'no',
            'first loss differs by': abs(first - usual[0]),
            'a weight differs by at most': float(abs(weights - usual[1]).max()),
            'held-out loss': loss,
            'held-out accuracy': accuracy,
        })
        print(table[-1], flush=True)
    if sys.argv[1:]: publish(table)
