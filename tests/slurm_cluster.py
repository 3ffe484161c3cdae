"""A real SLURM on this machine, as two nodes, started by whoever wants to test with it.

It needs the programs of Debian's packages slurm-wlm and munge, in a folder named by
LIGHTNING_RIPT_SLURM or on the PATH, and root.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = (
    *("slurmctld", "slurmd", "munged"),
    *("sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo"),
)
NODES = ("n1", "n2")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
InactiveLimit=0
KillWait=10
SlurmdTimeout=10
MessageTimeout=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def search_path():
    given = os.environ.get("LIGHTNING_RIPT_SLURM")
    return os.pathsep.join([*([given] if given else []), os.environ["PATH"], "/usr/sbin"])


def missing():
    """Why there can be no cluster here, None if there can."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if lacking:
        return f"SLURM is not installed here: there is no {', '.join(lacking)}"
    return None if os.geteuid() == 0 else "only root can start a SLURM"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


class Cluster:
    """Started and ended with the block."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "PATH": search_path(),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            # The nodes' names stand in no table of hosts.
            "MASTER_ADDR": "127.0.0.1",
        }
        self.daemons = {}

    def __enter__(self):
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self):
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        text = CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0], folder=self.folder, ports=free_ports(3)
        )
        (self.folder / "slurm.conf").write_text(text)
        self._start(
            "munged",
            *("--foreground", "--force", f"--key-file={key}"),
            *(f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")),
            f"--socket={self.folder}/munge.socket",
        )
        self.wait(lambda: (self.folder / "munge.socket").exists(), "munged to start")
        self._start("slurmctld", "-D", "-f", self.folder / "slurm.conf")
        for node in NODES:
            self.start_node(node)
        self.wait(self._is_idle, "the nodes to come up")

    def __exit__(self, *_):
        try:
            self.run("scancel", "--partition=debug", check=False)
        finally:
            for name in reversed(list(self.daemons)):
                self.kill(name)

    def mend(self):
        """Ends what runs and brings back a node that a test has lost."""
        self.run("scancel", "--partition=debug", check=False)
        for node in set(NODES) - set(self.daemons):
            self.start_node(node)
        self.wait(self._is_idle, "the nodes to come up")

    def _start(self, name, *arguments, key=None):
        program = shutil.which(name, path=search_path())
        with (self.folder / f"{key or name}.out").open("a") as out:
            self.daemons[key or name] = subprocess.Popen(
                [program, *map(str, arguments)],
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def start_node(self, node):
        self._start("slurmd", "-D", "-N", node, "-f", self.folder / "slurm.conf", key=node)

    def kill(self, name):
        """A daemon and all that it has started, as if its machine had lost power."""
        process = self.daemons.pop(name)
        family = {process.pid, *descendants(process.pid)}
        if name in NODES:  # the steps of jobs have left the family
            family |= steps_of_node(name)
        # All at once: whoever outlived its child would report the child's end.
        for pid in family:
            send(signal.SIGSTOP, pid)
        self.wait(lambda: not any(map(is_running, family)), f"the processes of {name} to stop")
        for pid in family:
            send(signal.SIGKILL, pid)
        process.wait()

    def run(self, *command, check=True):
        done = subprocess.run(
            [str(word) for word in command],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *arguments):
        """The number of the job that `lightning-ript submit` queues."""
        said = self.run(sys.executable, "-m", "lightning_ript", "submit", *arguments)
        return said.split()[1]

    def state(self, job):
        """What SLURM knows of a job, by name."""
        said = self.run("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in said if "=" in word)

    def hasten(self, job):
        """Starts a job that SLURM has queued again, and would hold for two minutes."""
        self.wait(lambda: self.state(job)["JobState"] == "PENDING", f"job {job} to be queued")
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait(self, condition, what, seconds=900):
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"waited in vain for {what}\n{self.logs()}"
            time.sleep(0.3)

    def logs(self):
        """The ends of the daemons' logs."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-2000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def _is_idle(self):
        return self.run("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"]


def state_and_parent(pid):
    """A process's state, by its letter in /proc, and its parent; None if it is gone."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return state, int(parent)


def is_running(pid):
    """Neither stopped nor dead."""
    known = state_and_parent(pid)
    return known is not None and known[0] not in "TZX"


def send(signal_number, pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal_number)


def processes():
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def descendants(pid):
    children = [other for other in processes() if (state_and_parent(other) or ("", 0))[1] == pid]
    return {*children, *(each for child in children for each in descendants(child))}


def steps_of_node(node):
    """Processes that a node has started for jobs, and the slurmstepd that watches each."""
    found = set()
    for pid in processes():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if f"SLURMD_NODENAME={node}".encode() not in variables or b"slurmd" in command:
            continue
        found |= {pid, *descendants(pid)}
        # Its own environment does not name the node.
        parent = (state_and_parent(pid) or ("", 0))[1]
        with suppress(OSError):
            if Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"slurmstepd"):
                found.add(parent)
    return found
