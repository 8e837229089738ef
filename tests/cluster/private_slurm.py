"""A real Slurm for one user and one machine: munged, slurmctld and slurmds on loopback, as root, without systemd.

Everything lives in one folder: configuration, key, socket, state, logs, pid files. Nothing in /etc is touched, and only
processes of its own pid files are ended.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

COMMANDS = ("munged", "mungekey", "munge", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")


def why_not():
    """Return why Slurm cannot be started here; empty when it can."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: slurm-wlm and munge)"
    if os.geteuid() != 0:
        return "slurmd starts jobs as their owners, for which it must be root"
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = "nowhere"
    if not address.startswith("127."):
        return f"the name of this host leads to {address}, not to loopback: add it to 127.0.0.1 in /etc/hosts"
    return ""


class PrivateSlurm:
    """Nodes that are this machine.

    Parameters
    ----------
    folder : Path
        Empty, and with a short path: it holds a socket.
    gpus : int
        Devices each node pretends to have, to see what a job is given.
    silence_s : int
        A node that does not answer for so long is down. Slurm's own five minutes, unless a node is to be lost: on a
        busy machine less would end the jobs of nodes that are well.
    """

    def __init__(self, folder, *, nodes=2, cpus=4, memory_mb=16000, gpus=1, silence_s=300):
        self.folder, self.nodes, self.cpus, self.memory_mb, self.gpus = folder, nodes, cpus, memory_mb, gpus
        self.silence_s = silence_s
        self.conf = folder / "slurm.conf"
        self.socket = folder / "munge" / "socket"

    @property
    def environment(self):
        return {"SLURM_CONF": str(self.conf)}

    def start(self):
        for name in ("run", "log", "state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "munge").mkdir(mode=0o711)
        key = self.folder / "munge" / "key"
        self._do("mungekey", "--create", f"--keyfile={key}")
        key.chmod(0o600)
        self._do(
            "munged", f"--key-file={key}", f"--socket={self.socket}", f"--pid-file={self._pid('munged')}",
            f"--log-file={self.folder}/log/munged.log", f"--seed-file={self.folder}/munge/seed", "--num-threads=2",
        )  # fmt: skip
        self._until(lambda: self._succeeds("munge", "-n", "-S", str(self.socket)), "munged does not answer")
        self._configure()
        self._do("slurmctld", "-f", str(self.conf))
        self._until(lambda: self._alive("slurmctld"), "slurmctld did not start")
        for number in range(1, self.nodes + 1):
            (self.folder / "spool" / f"n{number}").mkdir()
            self._do("slurmd", "-f", str(self.conf), "-N", f"n{number}")
        self._until(lambda: self.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * self.nodes, "no nodes")

    def stop(self):
        numbers = set(self.ask("squeue", "-h", "-o", "%A").split())
        if numbers:
            self._succeeds("scancel", *numbers)  # slurmd leaves its jobs running when it ends
            self._until(lambda: not self.ask("squeue", "-h").split(), "jobs do not end")
        names = [*(f"slurmd.n{number}" for number in range(1, self.nodes + 1)), "slurmctld", "munged"]
        for name in names:
            if self._alive(name):
                os.kill(int(self._pid(name).read_text()), 15)
        self._until(lambda: not any(self._alive(name) for name in names), "daemons do not end")

    def ask(self, *command):
        """Return what one of Slurm's commands prints."""
        return self._run(command).stdout

    def jobs(self, name=None):
        """Return number -> state of all jobs that have not ended, or of those of a name."""
        which = [f"--name={name}"] if name else []
        lines = self.ask("squeue", "-h", "-r", "-o", "%i %T", *which).splitlines()
        return dict(line.split() for line in lines)

    def node_of(self, job):
        """Return the node that a job runs on; empty when it runs on none."""
        return self.ask("squeue", "-h", "-o", "%N", f"--jobs={job}").strip()

    def lose(self, node, job):
        """Kill (-9) everything of a node at once, as if its power had gone: slurmd, and the processes of its job."""
        lost = [process for process in psutil.process_iter() if self._is_of(process, job)]
        steps = {parent for each in lost for parent in each.parents() if parent.name() == "slurmstepd"}
        lost = [psutil.Process(int(self._pid(f"slurmd.{node}").read_text())), *steps, *lost]
        for process in lost:  # stopped first: what is killed one by one would see each other go
            process.suspend()
        for process in lost:
            process.kill()
        psutil.wait_procs(lost, timeout=10)

    def _is_of(self, process, job):
        try:
            told = process.environ()
        except (psutil.Error, OSError):
            return False
        return (told.get("SLURM_CONF"), told.get("SLURM_JOB_ID")) == (str(self.conf), job)

    def _configure(self):
        host, port = socket.gethostname().split(".")[0], _free_ports(self.nodes + 1)
        lines = [
            "ClusterName=tests",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={port}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            # It also says how long a requeued job waits: 2 minutes by default.
            f"AuthInfo=socket={self.socket},cred_expire=10",
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={self._pid('slurmctld')}",
            f"SlurmdPidFile={self.folder}/run/slurmd.%n.pid",
            f"SlurmctldLogFile={self.folder}/log/slurmctld.log",
            f"SlurmdLogFile={self.folder}/log/slurmd.%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/linux",
            "JobAcctGatherFrequency=task=2",
            "AccountingStorageType=accounting_storage/none",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "SlurmdParameters=config_overrides",  # take the figures below although the machine has less
            "SchedulerParameters=sched_min_interval=200000,bf_interval=2",
            "ReturnToService=2",
            "MinJobAge=60",
            f"SlurmdTimeout={self.silence_s}",
            "KillWait=5",
            *(["GresTypes=gpu"] if self.gpus else []),
        ]
        for number in range(1, self.nodes + 1):
            lines.append(
                f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + number} CPUs={self.cpus} "
                f"RealMemory={self.memory_mb} State=UNKNOWN" + (f" Gres=gpu:{self.gpus}" if self.gpus else "")
            )
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 DefMemPerCPU=512 State=UP")
        self.conf.write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n", encoding="utf-8")
        devices = ""
        if self.gpus:
            for number in range(self.gpus):  # slurmd takes device files only: these are /dev/null by another name
                self._do("mknod", "-m", "0666", f"{self.folder}/spool/gpu{number}", "c", "1", "3")
            named = f"{self.folder}/spool/gpu[0-{self.gpus - 1}]"
            devices = f"NodeName=n[1-{self.nodes}] Name=gpu Flags=nvidia_gpu_env File={named}\n"
        (self.folder / "gres.conf").write_text(devices, encoding="utf-8")

    def _pid(self, name):
        return self.folder / "run" / f"{name}.pid"

    def _alive(self, name):
        """Return whether the process of a pid file is there and is what it should be; a zombie is not."""
        try:
            number = self._pid(name).read_text().strip()
            status = Path(f"/proc/{number}/status").read_text()
        except OSError:
            return False
        return status.startswith(f"Name:\t{name.split('.')[0]}") and "\nState:\tZ" not in status

    def _run(self, command):
        environment = os.environ | self.environment
        # A job gets the environment of whoever submits it: nothing of it must come from here.
        return subprocess.run(
            list(command), capture_output=True, text=True, check=False, env=environment, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def _succeeds(self, *command):
        return self._run(command).returncode == 0

    def _do(self, *command):
        with (self.folder / "log" / "started.log").open("ab") as log:  # a pipe would stay open in the daemons
            subprocess.run(
                list(command), check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | self.environment, timeout=60,
            )  # fmt: skip

    def _until(self, condition, complaint, seconds=30):
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("log/*"))
                raise RuntimeError(f"{complaint}\n{logs}")
            time.sleep(0.1)


def _free_ports(number):
    """Return the first of several ports in a row that nobody listens on; tests side by side look in places apart."""
    place = 500 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for first in range(26817 + place, 32000, 50):
        if all(_is_free(first + each) for each in range(number)):
            return first
    raise RuntimeError("no free ports")


def _is_free(port):
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) != 0
