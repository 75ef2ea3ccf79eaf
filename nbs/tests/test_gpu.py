"What only a GPU can show: no waiting inside an epoch, and a run that moves between GPU and CPU."
import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU is visible here')


@pytest.mark.parametrize('recipe', ['strict', 'best'])
@pytest.mark.parametrize('backend', ['eager', 'rows', 'compile'])
def test_no_synchronisation_inside_an_epoch(backend, recipe):
    from cifar_resnet.data import shapes10
    from cifar_resnet.train import Recipe, Training
    training = Training(Recipe(dataset='shapes10', recipe=recipe, batch_size=64, clip=1), shapes10()[0], device='cuda', backend=backend)
    for _ in range(3): training.step()                                             # compiled, and warm
    if training.scaler.is_enabled(): pytest.skip('the gradient scaler of float16 waits for the GPU by design')
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(3): training.step()
    finally: torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('backend', ['rows', 'compile', 'rows+compile', 'graph', 'rows+graph'])
def test_engines_train_as_the_plain_network_does(backend):
    from cifar_resnet.data import shapes10
    from cifar_resnet.train import Recipe, Training
    train = shapes10()[0]
    recipe = Recipe(dataset='shapes10', width=64, batch_size=256, epochs=1)
    plain, quick = ([t.step().item() for _ in range(6)] for t in (Training(recipe, train, device='cuda', backend=e) for e in ('eager', backend)))
    assert plain == pytest.approx(quick, rel=.03)


def test_maps_keep_their_memory_format_in_sixteen_bits():
    from cifar_resnet.model import by_rows, resnet18
    x = torch.rand(4,3,32,32, device='cuda').to(memory_format=torch.channels_last)
    model = by_rows(resnet18().cuda().to(memory_format=torch.channels_last))
    with torch.autocast('cuda', torch.float16): found = model.features(x)
    assert found.dtype == torch.float16 and found.is_contiguous(memory_format=torch.channels_last)


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


def test_maps_are_those_of_the_cpu():
    from cifar_resnet.augment import normalise
    from cifar_resnet.data import mean_std, shapes10
    from cifar_resnet.faithful import erasing, localisation, occlusion
    from cifar_resnet.gradcam import contrast, gradcam, receptive_centres, receptive_fields, upsample
    from cifar_resnet.model import WEIGHTS, load_weights
    test = shapes10(n_test=32)[1]
    x, y = normalise(torch.from_numpy(test.images), *mean_std(test.images)), torch.from_numpy(test.labels)
    model, gpu = (load_weights(WEIGHTS/'shapes10.safetensors').to(device) for device in ('cpu', 'cuda'))
    for target in (None, 3, y, 'all'):
        found = gradcam(gpu, x.cuda(), target, relu=False)
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), gradcam(model, x, target, relu=False), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(contrast(gpu, x.cuda(), y.cuda(), 0).margin.cpu(), contrast(model, x, y, 0).margin, rtol=1e-3, atol=1e-3)
    for f, g in zip(receptive_centres(receptive_fields(gpu, x.cuda())), receptive_centres(receptive_fields(model, x))): assert abs(f - g).max() < .2
    heat = upsample(gradcam(gpu, x.cuda(), y))
    assert localisation(heat, torch.from_numpy(test.masks['filled']).cuda())['pointing'].is_cuda
    assert (erasing(gpu, x.cuda(), y, heat) - erasing(model, x, y, heat.cpu())).abs().max() < .01
    assert (occlusion(gpu, x.cuda(), y) - occlusion(model, x, y)).abs().max() < .05
