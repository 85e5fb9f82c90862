"""A real Slurm of one node for tests: munged, slurmctld, slurmd, with files of their own; it claims two GPUs."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from service import free_port, until

CONFIG = """
ClusterName=rfss
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
MailProg=/bin/true
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=128000 Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """The cluster that runs."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        done = subprocess.run(
            command, env={**os.environ, **self.environment, **variables}, cwd=cwd, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what the controller knows of a job."""
        words = self.call("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@contextmanager
def slurm() -> Iterator[Slurm]:
    """Start the cluster, or skip where Slurm is not installed."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if _find(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here (Debian: apt install slurm-wlm munge)")
    # Paths of sockets are short; pytest's are not.
    folder = Path(tempfile.mkdtemp(prefix="rfss-slurm-"))
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    (folder / "munge").chmod(0o755)
    host = socket.gethostname().split(".")[0]
    found = Slurm(folder)
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(host=host, user=getpass.getuser(), folder=folder, controller=free_port(), node=free_port())
    )
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu Count=2\n")
    daemons = (
        ["munged", "--foreground", "--force", f"--socket={folder}/munge/socket", f"--key-file={key}",
         f"--log-file={folder}/munged.log", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D", "-f", str(config), "-c"],
        ["slurmd", "-D", "-f", str(config), "-N", host],
    )  # fmt: skip
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, *options in daemons:
            started.append(
                subprocess.Popen(
                    [str(_find(name)), *options], env={**os.environ, **found.environment},
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )
            )  # fmt: skip
            time.sleep(1)
        until(lambda: "idle" in _said("sinfo", found), "the node is idle", 60)
        yield found
    finally:
        _said("scancel", found, "--full", "--user", getpass.getuser())
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


def _said(name: str, cluster: Slurm, *options: str) -> str:
    done = subprocess.run(
        [name, *options], env={**os.environ, **cluster.environment}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    return done.stdout
