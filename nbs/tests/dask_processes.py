"A Dask scheduler and workers as processes of their own, which start within a moment (see processes.py)."
import asyncio, time
from contextlib import ExitStack, contextmanager
from functools import lru_cache

from cifar_resnet import scale
from cifar_resnet.train import Training
from processes import finish, start, wait_for


def scheduler(file, allowed_failures):
    "Serve until killed; the address goes into a file."
    import dask
    from distributed import Scheduler
    async def serve():
        async with Scheduler(host='127.0.0.1', port=0, dashboard=False) as s:
            file.with_suffix('.part').write_text(s.address); file.with_suffix('.part').rename(file)
            await s.finished()
    with dask.config.set({'distributed.scheduler.allowed-failures': allowed_failures}): asyncio.run(serve())


def worker(address, name, nthreads, batch_s):
    "Work until killed; a batch takes so many seconds more than it must."
    from distributed import Worker
    scale.load_data = lru_cache(scale.load_data)
    learn = Training.learn
    Training.learn = lambda self, *batch: (time.sleep(batch_s), learn(self, *batch))[1]
    async def serve():
        async with Worker(address, name=name, nthreads=nthreads, host='127.0.0.1', dashboard=False) as w: await w.finished()
    asyncio.run(serve())


@contextmanager
def cluster(folder, workers=2, nthreads=1, batch_s=0., allowed_failures=3):
    "Yield the address, the scheduler's process, and those of the workers by name."
    with ExitStack() as stack:
        def begin(name, *args):
            process = start(folder/f'{name}.log', *args)
            stack.callback(lambda: (process.kill(), finish(process)))
            return process
        at = folder/'address'
        head = begin('scheduler', scheduler, at, allowed_failures)
        wait_for(at.exists, head, 120)
        hands = {name: begin(name, worker, at.read_text(), name, nthreads, batch_s) for name in (f'w{i}' for i in range(workers))}
        yield at.read_text(), head, hands
