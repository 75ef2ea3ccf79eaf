"Processes that start within a moment: forked from a server that has imported the package, and nothing else, beforehand."
import multiprocessing, os, signal, sys, time

SERVER = multiprocessing.get_context('forkserver')
USED = 'cifar_resnet.cli cifar_resnet.scale scipy.stats scipy.optimize safetensors.torch torchinfo'.split()
SERVER.set_forkserver_preload(USED)      # a command imports these when it runs: here once, for all


def start(log, function, *args):
    "A process that runs `function(*args)` of an importable module; what it says goes to the file `log`, what it returns is its exit code."
    process = SERVER.Process(target=_child, args=(str(log), function, args))
    process.start()
    return process


def _child(log, function, args):
    signal.signal(signal.SIGINT, signal.default_int_handler)        # a shell that starts the tests in the background has it ignored
    with open(log, 'ab', buffering=0) as f: os.dup2(f.fileno(), 1); os.dup2(f.fileno(), 2)
    sys.exit(function(*args))


def finish(process, timeout=120):
    "Its exit code (negative: the signal that ended it)."
    process.join(timeout)
    assert process.exitcode is not None, 'the process hangs'
    return process.exitcode


def wait_for(condition, process=None, timeout=60):
    "Wait until `condition()` holds; fail if `process` ends before, or it takes too long."
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.is_alive() or condition()), 'it never came to that'
        time.sleep(.002)
