"""Two real Slurm clusters on this machine, and a SkyPilot that knows them and fetches nothing from anywhere.

alpha has 4 L4 and beta 8 A100: device nodes, which Slurm schedules like real ones. A lab lives in namespaces of its
own, with its own users, host names and processes. So two labs side by side do not meet, nothing of this machine is
changed, and the kernel ends every process of a lab together with whoever made it, even if that one is killed.

Needs root, and slurm-wlm, munge, openssh-server, rsync and util-linux of a Debian.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import stamina

from blocks.local.processes import free_port, is_free

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "sshd", "ssh-keygen", "rsync", "unshare", "nsenter", "mount")
HOST = "slurm-lab"
"""What this machine is called inside of a lab."""
PROVISION_SECONDS = 8
"""How long SkyPilot waits for a place on a cluster before it gives up."""
NO_SUCH_PID = 1 + (1 << 22)
"""Linux gives out none above 2^22."""
SECONDS = 60
"""How long anything that a lab waits for may take."""


@dataclass(frozen=True)
class Cluster:
    name: str
    accelerator: str
    accelerators: int
    pricing: Mapping[str, object]
    """The rate card, as SkyPilot's configuration has it: dollars an hour for a CPU, a GiB of memory, an accelerator."""

    @property
    def user(self) -> str:
        """One login for each cluster: SkyPilot's clusters on the same login would end each other's daemons."""
        return f"slurm-{self.name}"

    @property
    def node(self) -> str:
        return f"{self.name}-n1"


CLUSTERS = {
    "alpha": Cluster("alpha", "L4", 4, {"cpu": 0.01, "memory": 0.001, "accelerators": {"L4": 0.7}}),
    "beta": Cluster("beta", "A100", 8, {"cpu": 0.02, "memory": 0.002, "accelerators": {"A100": 2.5}}),
}

REPLICA_PORTS = range(2_000, 8_000)
"""Of a fleet in the lab. It cannot see that all nodes are this machine, where Prefect's server for tests has one from
8,000 on, and the other servers have those that `free_port` gives, from 10,000 on."""


def what_is_missing() -> str | None:
    """Why no lab can be made here, and what to do; None where one can."""
    if os.geteuid() != 0:
        return "the Slurm lab needs root"
    if missing := [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge openssh-server rsync"
    return None


@pytest.fixture(name="slurm_lab", scope="session")
def running_slurm_lab() -> Iterator["SlurmLab"]:
    """One lab for all live tests of a worker, in whose environment this process is from then on."""
    if (reason := what_is_missing()) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason} (in CI nothing of the live suite is skipped)")
        pytest.skip(reason)
    # It reads once where it lives: a test that imports it before this one would send all to a SkyPilot of its own.
    assert "sky" not in sys.modules, "a test module imports sky as it is collected; use blocks.skypilot.sdk.skypilot()"
    # Not pytest's own temporary directory: the clusters' users could not enter that one.
    with tempfile.TemporaryDirectory(prefix="slurm-lab-") as directory, pytest.MonkeyPatch.context() as patch:
        Path(directory).chmod(0o755)
        with slurm_lab(Path(directory)) as lab:
            for name, value in lab.environment.items():
                patch.setenv(name, value)
            yield lab


@contextmanager
def slurm_lab(directory: Path) -> Iterator["SlurmLab"]:
    """Both clusters and SkyPilot's API server, ready, in a directory that all of this machine's users can enter."""
    layout = _Layout.drawn(directory)
    layout.write()
    script = layout.start_script()
    with (directory / "lab.log").open("wb") as log:
        # With --kill-child the first process of the namespaces, and so all of them, goes when unshare goes; and that
        # one waits for the end of its standard input, which the kernel closes when this process goes.
        unshare = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-e", script]
        lab = subprocess.Popen(
            unshare, stdin=subprocess.PIPE, stdout=log, stderr=log, env=_plain_environment(), cwd="/"
        )
    try:
        _wait((directory / "up").exists, "the daemons of Slurm to start", directory, lab)
        (init,) = psutil.Process(lab.pid).children()
        running = SlurmLab(layout, init.pid)
        _wait(lambda: all(map(running.is_idle, CLUSTERS)), "Slurm's nodes to be idle", directory, lab)
        running.start_api_server()
        yield running
    finally:
        lab.communicate()


@dataclass(frozen=True)
class SlurmLab:
    """A lab that runs."""

    _layout: "_Layout"
    _init: int
    """The process whose namespaces the lab lives in."""

    @property
    def directory(self) -> Path:
        return self._layout.directory

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to use the lab through SkyPilot."""
        return self._layout.environment

    @property
    def python(self) -> Path:
        """This project's Python with all its packages, where the clusters' users can run it."""
        return self.directory / "runtime" / "bin" / "python"

    def fill(self, cluster: str) -> str:
        """Have a job take every GPU of the cluster, and do nothing; its id."""
        job = self._slurm(
            cluster, "sbatch", "--parsable", f"--gres=gpu:{CLUSTERS[cluster].accelerators}", "--mem=1",
            "--output=/dev/null", "--chdir=/", "--wrap=sleep infinity",
        ).strip()  # fmt: skip
        self._wait(lambda: self.queue(cluster).get(job, ("", ""))[1] == "RUNNING", f"job {job} on {cluster} to run")
        return job

    def queue(self, cluster: str) -> dict[str, tuple[str, str]]:
        """Name and state by id, of all jobs of the cluster that have not ended; those that are ending it sees off."""
        self._wait(
            lambda: "COMPLETING" not in self._squeue(cluster), f"jobs on {cluster} that are ending to have ended"
        )
        lines = self._squeue(cluster).splitlines()
        return {job: (name, state) for job, name, state in (line.split("|") for line in lines)}

    def _squeue(self, cluster: str) -> str:
        return self._slurm(cluster, "squeue", "--noheader", "--format=%i|%j|%T")

    def cancel(self, cluster: str, job: str) -> None:
        """Returns once the job is gone."""
        self._slurm(cluster, "scancel", job)
        self._wait(lambda: job not in self.queue(cluster), f"job {job} on {cluster} to end")

    def stop_controller(self, cluster: str) -> None:
        """From now on nobody is answered about the cluster; its jobs go on."""
        self._slurm(cluster, "scontrol", "shutdown", "slurmctld")
        port, _ = self._layout.slurm_ports[cluster]
        self._wait(lambda: is_free("127.0.0.1", port), f"{cluster}'s slurmctld to end")

    def start_controller(self, cluster: str) -> None:
        self._inside("slurmctld", "-f", str(self._conf(cluster)))
        self._wait(lambda: self._answers(cluster), f"{cluster}'s slurmctld to answer")

    def start_api_server(self) -> None:
        """SkyPilot's, inside of the lab too, so that it ends with it."""
        self._inside(sys.executable, "-c", "import sky; sky.api_start()")

    def stop_api_server(self) -> None:
        self._inside(sys.executable, "-c", "import sky; sky.api_stop()")

    def is_idle(self, cluster: str) -> bool:
        """Its controller answers, and its node could take a job."""
        with suppress(subprocess.CalledProcessError):
            return self._slurm(cluster, "sinfo", "--noheader", "--format=%T").strip() == "idle"
        return False

    def _answers(self, cluster: str) -> bool:
        with suppress(subprocess.CalledProcessError):
            self._slurm(cluster, "squeue", "--noheader")
            return True
        return False

    def _conf(self, cluster: str) -> Path:
        return self.directory / cluster / "slurm.conf"

    def _slurm(self, cluster: str, *command: str) -> str:
        """What one of Slurm's own commands prints."""
        env = {**_plain_environment(), "SLURM_CONF": str(self._conf(cluster))}
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=SECONDS).stdout

    def _inside(self, *command: str) -> None:
        env = {**_plain_environment(), **self.environment}
        with (self.directory / "lab.log").open("ab") as log:
            subprocess.run(
                ["nsenter", "--target", str(self._init), "--mount", "--uts", "--pid", "--", *command],
                env=env, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=2 * SECONDS,
            )  # fmt: skip

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        _wait(holds, what, self.directory)


@dataclass(frozen=True)
class _Layout:
    """The lab's files, before anything runs."""

    directory: Path
    ssh_port: int
    api_port: int
    slurm_ports: Mapping[str, tuple[int, int]]
    """slurmctld's and slurmd's, by cluster."""
    first_uid: int

    @classmethod
    def drawn(cls, directory: Path) -> "_Layout":
        """On free ports."""
        slurm_ports = {cluster: (free_port(), free_port()) for cluster in CLUSTERS}
        # Limits and file owners count by number, so the users of two labs should not have the same ones.
        first_uid = 200_000 + len(CLUSTERS) * secrets.randbelow(1_000_000)
        return cls(directory, free_port(), free_port(), slurm_ports, first_uid)

    @property
    def home(self) -> Path:
        """Of whoever uses SkyPilot; each cluster's user has a home besides."""
        return self.directory / "home" / "sky"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self.api_port),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def write(self) -> None:
        for cluster in CLUSTERS.values():
            self._write_cluster(cluster)
        self._write_munge_key()
        self._write_logins()
        self._write_runtime()
        self._write_home()
        self._write_prolog()

    def _write_cluster(self, cluster: Cluster) -> None:
        place, (controller, daemon) = self.directory / cluster.name, self.slurm_ports[cluster.name]
        for name in ("state", "spool", "dev"):
            (place / name).mkdir(parents=True)
        devices = place / "dev"
        for number in range(cluster.accelerators):
            # Slurm counts only GPUs that have a character device; these are the null device's.
            os.mknod(devices / f"gpu{number}", 0o666 | 0o020000, os.makedev(1, 3))
        gpus = f"gpu:{cluster.accelerator}:{cluster.accelerators}"
        (place / "gres.conf").write_text(
            f"Name=gpu Type={cluster.accelerator} File={devices}/gpu[0-{cluster.accelerators - 1}]\n"
        )
        (place / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        settings = {
            "ClusterName": cluster.name,
            "SlurmctldHost": f"{HOST}(127.0.0.1)",
            "SlurmctldPort": controller,
            "SlurmdPort": daemon,
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.directory}/munge/socket",
            "CredType": "cred/munge",
            "CommunicationParameters": "NoAddrCache,NoCtldInAddrAny,NoInAddrAny",
            "StateSaveLocation": place / "state",
            "SlurmdSpoolDir": place / "spool",
            "SlurmctldPidFile": place / "slurmctld.pid",
            "SlurmdPidFile": place / "slurmd.pid",
            "SlurmctldLogFile": place / "slurmctld.log",
            "SlurmdLogFile": place / "slurmd.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "TaskProlog": self.directory / "bin" / "prolog",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "MpiDefault": "none",
            "MailProg": "/bin/true",
            "SwitchType": "switch/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU_Memory",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "sched_interval=2,bf_interval=2",
            "GresTypes": "gpu",
            "ReturnToService": 2,
            # How long Slurm's commands, and so SkyPilot's, go on asking a controller that is down.
            "MessageTimeout": 3,
            "KillWait": 5,
            "InactiveLimit": 0,
            "MinJobAge": 60,
            "SlurmdParameters": "config_overrides",
        }
        node = f"NodeName={cluster.node} NodeHostname={HOST} NodeAddr=127.0.0.1 CPUs=16 RealMemory=16000 Gres={gpus}"
        (place / "slurm.conf").write_text(
            "".join(f"{name}={value}\n" for name, value in settings.items())
            + f"{node} State=UNKNOWN\nPartitionName=main Nodes=ALL Default=YES MaxTime=1:00:00 State=UP\n"
        )

    def _write_munge_key(self) -> None:
        (self.directory / "munge").mkdir(mode=0o755)
        key = self.directory / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))

    def _write_logins(self) -> None:
        """The clusters' users, and an sshd that lets them in and tells each the way to its own Slurm."""
        ssh, etc = self.directory / "ssh", self.directory / "etc"
        ssh.mkdir(mode=0o755)
        etc.mkdir()
        for key in ("id", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / key], check=True)
        homes = self.directory / "home"
        passwd, group = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
        for uid, cluster in enumerate(CLUSTERS.values(), start=self.first_uid):
            home = homes / cluster.user
            (home / ".ssh").mkdir(parents=True)
            (home / "tmp").mkdir()
            shutil.copy(ssh / "id.pub", home / ".ssh" / "authorized_keys")
            for path in (home, *home.rglob("*")):
                os.chown(path, uid, uid)
            passwd += f"{cluster.user}:*:{uid}:{uid}::{home}:/bin/bash\n"
            group += f"{cluster.user}:x:{uid}:\n"
        (etc / "passwd").write_text(passwd)
        (etc / "group").write_text(group)
        # SkyPilot asks for the addresses of nodes by their names.
        names = " ".join(cluster.node for cluster in CLUSTERS.values())
        (etc / "hosts").write_text(f"127.0.0.1 localhost {HOST} {names}\n")
        (ssh / "sshd_config").write_text(
            f"Port {self.ssh_port}\nListenAddress 127.0.0.1\nHostKey {ssh}/host\nPidFile {ssh}/sshd.pid\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin no\nPrintMotd no\nPrintLastLog no\n"
            "MaxStartups 100\nMaxSessions 100\nSubsystem sftp internal-sftp\n"
            + "".join(
                f"Match User {cluster.user}\n  SetEnv SLURM_CONF={self.directory}/{cluster.name}/slurm.conf "
                # Python may look for a library of its own where it was built, and that may be closed to these users.
                f"PATH=/usr/local/bin:/usr/bin:/bin LD_LIBRARY_PATH={self.directory}/python/lib "
                f"PYTHONPATH={self.directory}/customized\n"
                for cluster in CLUSTERS.values()
            )
        )

    def _write_runtime(self) -> None:
        """A virtual environment with this project's packages, wherever they are: the start script mounts them there."""
        runtime, python = self.directory / "runtime", self.directory / "python"
        python.mkdir()
        for path in ("bin", _SITE_PACKAGES):
            (runtime / path).mkdir(parents=True)
        (runtime / "pyvenv.cfg").write_text(
            f"home = {python}/bin\ninclude-system-site-packages = false\nversion = {_VERSION}\n"
        )
        for name in ("python", "python3"):
            (runtime / "bin" / name).symlink_to(python / "bin" / f"python{_VERSION}")
        (runtime / "bin" / "activate").write_text(
            f'VIRTUAL_ENV={runtime}\nPATH="$VIRTUAL_ENV/bin:$PATH"\nexport VIRTUAL_ENV PATH\ndeactivate() {{ :; }}\n'
        )
        _write_script(runtime / "bin" / "pip", f'exec {runtime}/bin/python -m pip "$@"\n')
        (self.directory / "customized").mkdir()
        (self.directory / "customized" / "sitecustomize.py").write_text(_ON_THE_NODES)

    def _write_home(self) -> None:
        """SkyPilot's settings: logins, rate card, and what it would fetch from the web, as if a user had edited it."""
        catalogue = self.home / ".sky" / "catalogs" / "v8" / "common"
        catalogue.mkdir(parents=True)
        (self.home / ".slurm").mkdir()
        (self.home / ".slurm" / "config").write_text(
            "".join(
                f"Host {cluster.name}\n    HostName 127.0.0.1\n    Port {self.ssh_port}\n    User {cluster.user}\n"
                f"    IdentityFile {self.directory}/ssh/id\n    IdentitiesOnly yes\n"
                for cluster in CLUSTERS.values()
            )
        )
        clusters = {
            cluster.name: {"pricing": cluster.pricing, "tmpdir": str(self.directory / "home" / cluster.user / "tmp")}
            for cluster in CLUSTERS.values()
        }
        config = {
            "allowed_clouds": ["slurm"],
            "slurm": {"provision_timeout": PROVISION_SECONDS, "cluster_configs": clusters},
        }
        (self.home / ".sky" / "config.yaml").write_text(json.dumps(config, indent=1))  # every JSON is YAML
        (catalogue / "accelerators.csv").write_text(
            "AcceleratorName,Clouds\nL4,\"['AWS', 'GCP']\"\nA100,\"['AWS', 'GCP']\"\n"
        )
        (catalogue / "metadata.csv").write_text("GPU,MemoryGB,Manufacturer\nL4,24,NVIDIA\nA100,40,NVIDIA\n")

    def _write_prolog(self) -> None:
        """What runs before each task: it puts in place what SkyPilot would download for each of its clusters."""
        binaries = self.directory / "bin"
        binaries.mkdir()
        (binaries / "uv").touch()
        _write_script(
            binaries / "prolog",
            f"""
name=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%j)
login=$(getent passwd "$(id -u)" | cut -d: -f6)
home=$login/.sky_clusters/$name runtime=$login/tmp/$name
[ -d "$home" ] || exit 0  # no job of SkyPilot's
mkdir -p "$home/.local/bin" "$home/.sky/wheels" "$runtime/.sky"
[ -e "$home/.local/bin/uv" ] || ln -s {binaries}/uv "$home/.local/bin/uv"
[ -e "$home/sky-user-env" ] || ln -s {self.directory}/runtime "$home/sky-user-env"
[ -e "$runtime/skypilot-runtime" ] || ln -s {self.directory}/runtime "$runtime/skypilot-runtime"
# Without a pid of its own, SkyPilot ends every daemon of this login, also those of its other clusters.
[ -e "$runtime/.sky/skylet_pid" ] || echo {NO_SUCH_PID} > "$runtime/.sky/skylet_pid"
# SkyPilot is in the runtime already: the very one that its server would send.
cp {self.directory}/wheel-hash "$home/.sky/wheels/current_sky_wheel_hash"
""",
        )

    def start_script(self) -> Path:
        """What runs first in the lab's namespaces, and for as long as the lab."""
        at, packages = self.directory, sysconfig.get_path("purelib")
        daemons = "\n".join(
            f"slurmctld -c -f {at}/{cluster.name}/slurm.conf\n"
            f"slurmd -N {cluster.node} -f {at}/{cluster.name}/slurm.conf"
            for cluster in CLUSTERS.values()
        )
        script = at / "start"
        _write_script(
            script,
            f"""
hostname {HOST}
for name in hosts passwd group; do mount --bind {at}/etc/$name /etc/$name; done
mount --bind {sys.base_prefix} {at}/python
mount --bind {packages} {at}/runtime/{_SITE_PACKAGES}
mount --bind {_program("uv")} {at}/bin/uv
mkdir -p /run/sshd
munged --key-file={at}/munge/key --socket={at}/munge/socket --pid-file={at}/munge/pid \\
    --log-file={at}/munge/log --seed-file={at}/munge/seed --num-threads=2
{_program("sshd")} -f {at}/ssh/sshd_config -E {at}/ssh/log
{daemons}
env {" ".join(f"{name}={value}" for name, value in self.environment.items())} {sys.executable} -c \\
    'from sky.backends import wheel_utils; print(wheel_utils.build_sky_wheel()[1])' > {at}/wheel-hash
touch {at}/up
cat  # until whoever made the lab is gone
""",
        )
        return script


_ON_THE_NODES = """
# SkyPilot starts a Python for each question, and a sixth of its two seconds looks for garbage in what it imports.
import gc
gc.disable()
# SkyPilot gives its daemon the first free port, and the daemon takes it seconds later. All nodes of all labs are this
# machine: of two daemons that start together, one would then begin anew every few seconds for as long as its cluster.
import os, sys, zlib
if "sky.skylet.attempt_skylet" in sys.orig_argv:
    from sky.skylet import constants
    constants.SKYLET_GRPC_PORT = 10_000 + zlib.crc32(os.environ["HOME"].encode()) % 20_000
"""
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_SITE_PACKAGES = f"lib/python{_VERSION}/site-packages"
_PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _plain_environment() -> dict[str, str]:
    """This process's own, without what would lead Slurm or SkyPilot elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SKYPILOT_", "SKY_"))}
    return {**kept, "PATH": _PATH}


def _program(name: str) -> str:
    """Its whole path: sshd refuses to be started by less."""
    path = shutil.which(name, path=_PATH)
    assert path is not None, name
    return path


def _write_script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)


def _wait(holds: Callable[[], bool], what: str, directory: Path, lab: subprocess.Popen[bytes] | None = None) -> None:
    for attempt in stamina.retry_context(
        on=TimeoutError, attempts=None, timeout=SECONDS, wait_initial=0.1, wait_max=0.5
    ):
        with attempt:
            if lab is not None and lab.poll() is not None:
                raise RuntimeError(f"the lab ended while waiting for {what}:\n{(directory / 'lab.log').read_text()}")
            if not holds():
                raise TimeoutError(f"waited in vain for {what}:\n{(directory / 'lab.log').read_text()[-2000:]}")
