"""A real Slurm and a real NFS on one machine, for the experiments and tests that need one.

    with slurm(folder) as nodes: ...      # a Slurm of its own, two nodes: `sbatch` and the rest talk to it
    with_nfs(folder, [python, script])    # a command in a Linux kernel of its own, with NFS mounted in several ways

Both need root and a few of Debian's packages; where something is missing they raise NotRun, which says what. At the end
nothing of them is left but what they wrote into the folder.
"""
import os, shlex, shutil, socket, subprocess, time
from contextlib import ExitStack, contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PROGRAMS = 'munged', 'slurmctld', 'slurmd', 'sbatch'
CONF = """
ClusterName=engines
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=20
MinJobAge=300
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE OverTimeLimit=0
"""
NODE = 'NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=4000'
USED = 'SLURM_CONF', 'MUNGE_SOCKET'


class NotRun(Exception):
    "What this machine lacks."


def what_slurm_lacks():
    "Why no Slurm can be started here, in a few words; None if it can."
    if not hasattr(os, 'geteuid') or os.geteuid(): return 'not root'
    return _missing(PROGRAMS, 'slurm-wlm munge')


def _missing(programs, packages):
    for name in programs:
        if not shutil.which(name, path=_path()): return f'no {name}: apt-get install {packages}'


def _path(): return os.pathsep.join([os.environ.get('PATH', ''), '/usr/sbin'])


def free_ports(n):
    "So many ports that nobody listens to."
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in socks: s.bind(('127.0.0.1', 0))
        return [s.getsockname()[1] for s in socks]


@contextmanager
def slurm(folder, names=('n1', 'n2')):
    "Inside the block a Slurm of its own runs in `folder`, and this process's `sbatch` talks to it. Yields its nodes."
    if lacks := what_slurm_lacks(): raise NotRun(lacks)
    folder = Path(folder).resolve()
    _configure(folder, names)
    usual = {name: os.environ.get(name) for name in USED}
    os.environ.update(SLURM_CONF=f'{folder}/slurm.conf', MUNGE_SOCKET=f'{folder}/munge.socket')
    try:
        with ExitStack() as stack:
            munge = [f'--{kind}-file={folder}/munge.{kind}' for kind in ('key', 'pid', 'log', 'seed')]
            munge += [f'--socket={folder}/munge.socket']
            stack.enter_context(_daemon('munged', '--foreground', '--force', *munge))
            _until((folder/'munge.socket').exists, 'munged does not answer', folder/'munge.log')
            stack.enter_context(_daemon('slurmctld', '-D', '-i'))
            for name in names: stack.enter_context(_daemon('slurmd', '-D', '-N', name))
            _until(lambda: _idle() == len(names), 'the nodes do not come up', folder/'slurmctld.log')
            try: yield names
            finally: _clear()
    finally:
        for name, value in usual.items():
            if value is None: del os.environ[name]
            else: os.environ[name] = value


def _configure(folder, names):
    "Write the folder of a Slurm."
    host, ports = socket.gethostname().split('.')[0], free_ports(1 + len(names))
    for name in ('state', *names): (folder/name).mkdir(parents=True, exist_ok=True)
    nodes = [NODE.format(name=name, host=host, port=port) for name, port in zip(names, ports[1:])]
    (folder/'slurm.conf').write_text(CONF.format(folder=folder, host=host, ports=ports, nodes='\n'.join(nodes)))
    (folder/'munge.key').write_bytes(os.urandom(128))
    (folder/'munge.key').chmod(0o600)


@contextmanager
def _daemon(*command):
    "A process that is ended at the end of the block."
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(command, env={**os.environ, 'PATH': _path()}, **quiet)
    try: yield process
    finally:
        process.terminate()
        try: process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def asked(*command):
    "What a command of Slurm prints; '' if it fails."
    return subprocess.run(command, capture_output=True, text=True).stdout


def _idle(): return asked('sinfo', '-h', '-N', '-o', '%T').split().count('idle')


def _clear():
    "Cancel what is left, and wait until nothing runs."
    subprocess.run(['scancel', '--user', 'root'], capture_output=True)
    _until(lambda: not asked('squeue', '-h').strip(), 'jobs do not end')


def _until(condition, otherwise, log=None, patience_s=60):
    until = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > until:
            raise NotRun(f'{otherwise}: {log.read_text()[-300:] if log and log.exists() else "no log"}')
        time.sleep(.1)


# A kernel of its own: user-mode-linux runs Linux as a process whose root is this machine's, and needs no module of it.
KERNEL = 'linux.uml', 'modprobe', 'exportfs', 'rpc.nfsd', 'rpc.mountd', 'rpc.statd', 'rpcbind', 'mount.nfs'
MODULES = Path('/usr/lib/uml/modules')
MOUNTS = {                       # how a client may mount the same folder; each twice, as two machines would
    'NFSv4': 'vers=4.2',
    'NFSv3': 'vers=3',
    'NFSv3, nolock': 'vers=3,nolock',
}
BOOT = """#!/bin/bash
export PATH={path} HOME=/tmp OMP_NUM_THREADS=1 PYTHONPATH={repo}
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib/nfs
exec >>{folder}/kernel.log 2>&1
mkdir -p /dev/shm; mount -t tmpfs tmpfs /dev/shm; ip link set lo up
mkdir -p /run/modules/lib /run/export /var/lib/nfs/{{v4recovery,sm,rpc_pipefs}}; touch /var/lib/nfs/{{etab,rmtab}}
ln -s {modules} /run/modules/lib/modules
for module in nfsd nfs nfsv4 nfsv3; do modprobe -d /run/modules $module; done
mount -t tmpfs tmpfs /run/export; mount -t nfsd nfsd /proc/fs/nfsd
for seconds in /proc/fs/nfsd/nfsv4{{lease,grace}}time /proc/sys/fs/nfs/nlm_grace_period; do echo 10 >$seconds; done
rpcbind -w; rpc.statd --no-notify
exportfs -i -o rw,no_root_squash,fsid=0,insecure,no_subtree_check 127.0.0.1:/run/export
rpc.mountd; rpc.nfsd 4
{mounts}
cat /proc/mounts >{folder}/mounts
dmesg -n 4; cd {cwd}; {command} >>{folder}/said 2>&1; echo $? >{folder}/rc
sync; echo o >/proc/sysrq-trigger; sleep 9
"""


def what_nfs_lacks():
    "Why no NFS can be served and mounted here, in a few words; None if it can."
    if not hasattr(os, 'geteuid') or os.geteuid(): return 'not root'
    return _missing(KERNEL, 'user-mode-linux nfs-kernel-server kmod')


@contextmanager
def _many_maps(n=1 << 20):
    "Inside the block a process may have so many memory maps: such a kernel needs one for nearly every page."
    limit = Path('/proc/sys/vm/max_map_count')
    usual = limit.read_text()
    limit.write_text(str(max(n, int(usual))))
    try: yield
    finally: limit.write_text(usual)


def with_nfs(folder, command, timeout=300):
    """Run a command in a kernel of its own, given the folders where the same NFS export is mounted: two for each of
    `MOUNTS`. Returns what it said; raises NotRun if it does not come to an end, or fails."""
    if lacks := what_nfs_lacks(): raise NotRun(lacks)
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    mounts, places = [], []
    for i, how in enumerate(MOUNTS.values()):
        source = '/' if how.startswith('vers=4') else '/run/export'
        for place in (f'/run/{i}a', f'/run/{i}b'):
            mounts.append(f'mkdir {place}; mount -t nfs -o {how},nosharecache,timeo=50 127.0.0.1:{source} {place}')
            places.append(place)
    boot = folder/'boot'
    boot.write_text(BOOT.format(path=_path(), repo=REPO, folder=folder, modules=MODULES, mounts='\n'.join(mounts),
                                cwd=shlex.quote(os.getcwd()), command=shlex.join([*map(str, command), *places])))
    boot.chmod(0o700)
    kernel = ['linux.uml', 'mem=3G', 'rootfstype=hostfs', 'rootflags=/', 'rw', f'init={boot}', 'con=null']
    with _many_maps(), _daemon(*kernel) as process:
        try: process.wait(timeout)
        except subprocess.TimeoutExpired: pass
    said = (folder/'said').read_text() if (folder/'said').exists() else ''
    if not (folder/'rc').exists(): raise NotRun(f'the kernel of its own did not get to the end: {said[-500:]}')
    if code := int((folder/'rc').read_text()): raise RuntimeError(f'{command} ended with {code}: {said[-1000:]}')
    return said
