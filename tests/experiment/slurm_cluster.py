"""A Slurm of one node on the loopback interface, for tests: its own configuration, ports, folders and processes.

Debian's packages slurmctld, slurmd and slurm-client bring the programs; `slurmd` needs root to start jobs.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo", "setpriv")

# One node that is not asked what it has, no authentication, no accounting. A job that is told to end is killed
# KillWait seconds later; a partition with a priority preempts the other one by requeueing.
CONF = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
ReturnToService=2
JobRequeue=0
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes=localhost Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=localhost PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str:
    """Why no Slurm can be started here; empty where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurmctld slurmd slurm-client)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as root only"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Starts a Slurm whose files are in `folder`; gives the environment in which its commands find it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    ports = free_ports(2)
    conf.write_text(CONF.format(folder=folder, controller_port=ports[0], node_port=ports[1]))
    (folder / "gres.conf").write_text(
        "".join(f"NodeName=localhost Name=gpu File=/dev/{name}\n" for name in ("null", "zero"))
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    environment["SLURM_CONF"] = str(conf)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", "localhost"]):
            with (folder / f"{command[0]}.out").open("wb") as output:
                daemons.append(
                    subprocess.Popen(
                        ["setpriv", "--pdeathsig=TERM", *command],  # should this process be killed
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                    )
                )
        wait_for_node(environment, daemons, folder)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()  # slurmctld takes a child of its own along
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        kill_all_of(conf)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for_node(environment: dict[str, str], daemons: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        command = ["sinfo", "--noheader", "--partition=gpu", "--format=%T"]
        state = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        if state.stdout.strip() == "idle":
            return
        if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
            outputs = [f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("slurm*.[lo]*"))]
            raise RuntimeError("\n".join([f"no Slurm: {state}", *outputs]))
        time.sleep(0.2)


def kill_all_of(conf: Path) -> None:
    """Kills what has this configuration in its environment: slurmstepd, job scripts, tasks."""
    mark = f"SLURM_CONF={conf}".encode()
    for _ in range(50):
        found = False
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in environ.read_bytes().split(b"\0") and int(environ.parts[2]) != os.getpid():
                    os.kill(int(environ.parts[2]), signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(0.1)
