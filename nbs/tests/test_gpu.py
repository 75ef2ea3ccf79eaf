"What only a GPU can show: no waiting inside an epoch, and a run that moves between GPU and CPU."
import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU is visible here')


def test_no_synchronisation_inside_an_epoch():
    from cifar_resnet.data import shapes10
    from cifar_resnet.train import Recipe, Training
    training = Training(Recipe(dataset='shapes10', batch_size=64), shapes10()[0], device='cuda')
    training.step()
    if training.scaler.is_enabled(): pytest.skip('the gradient scaler of float16 waits for the GPU by design')
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(3): training.step()
    finally: torch.cuda.set_sync_debug_mode('default')


def test_from_gpu_to_cpu_and_back(tmp_path):
    from cifar_resnet.data import shapes10
    from cifar_resnet.train import Recipe, Training
    train = shapes10()[0]
    training = Training(Recipe(dataset='shapes10', width=8, epochs=2, limit=320, batch_size=64), train, tmp_path, device='cuda')
    for _ in range(3): training.step()
    training.save()
    for device in ('cpu', 'cuda'):
        resumed = Training.resume(tmp_path, train, device=device)
        assert [row['epoch'] for row in resumed] == [1, 2]
