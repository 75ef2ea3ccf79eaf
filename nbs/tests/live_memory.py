"The bytes of the tensors that are alive at once: counted at each operation, the same on every machine."
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    "Inside, `peak` is the most bytes that tensors made inside have held at once."
    def __init__(self): super().__init__(); self.now = self.peak = 0; self.known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        mine = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(out):
            if not isinstance(t, torch.Tensor): continue
            storage = t.untyped_storage()
            key = storage.data_ptr()
            if key in self.known or key in mine or not key: continue
            self.known[key] = storage.nbytes()
            self.now += storage.nbytes(); self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.freed, key)
        return out

    def freed(self, key): self.now -= self.known.pop(key, 0)


def peak(f):
    "The most bytes alive at once while f() runs, beyond what was there before."
    with LiveMemory() as memory: f()
    return memory.peak
