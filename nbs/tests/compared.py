"Runs compared to the bit."
import torch
from safetensors.torch import load_file


def weights(folder): return load_file(folder/'weights.safetensors')
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
