"""The job array of docs/how-to/scale.md in a real Slurm on this machine, with a task that is requeued."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.overhead import write_dataset

from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import make_dataset
from tests.paths import ROOT
from tests.support.doc_blocks import MODEL_SERVER, read_blocks
from tests.support.waiting import LONG_PATIENCE, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        not all(map(shutil.which, PROGRAMS)) or os.getuid() != 0,
        reason="needs Slurm and root: apt-get install slurm-wlm munge",
    ),
]

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPort={controller_port}
SlurmdPort={node_port}
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start a cluster of one node, or skip the test if it does not start."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    ports = {"controller_port": free_port(), "node_port": free_port()}
    config.write_text(CONFIG.format(host=socket.gethostname(), folder=folder, cores=os.cpu_count(), **ports))
    monkeypatch.setenv("SLURM_CONF", str(config))
    if subprocess.run(["munge", "-n"], capture_output=True).returncode != 0:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=False)
    for daemon in ("slurmctld", "slurmd"):
        subprocess.run([daemon], check=False)
    try:
        wait_until(
            lambda: "idle" in subprocess.run(["sinfo", "-h"], capture_output=True, text=True).stdout,
            "the node does not start",
        )
    except AssertionError:
        pytest.skip("Slurm does not start on this machine")
    yield
    subprocess.run(["scontrol", "shutdown"], check=False)


def queue() -> str:
    return subprocess.run(["squeue", "-h", "-r", "-o", "%K %T"], capture_output=True, text=True, check=True).stdout


def test_printed_job_array_reranks_and_resumes_a_requeued_task(
    slurm: None, loopback: StartLoopback, tmp_path: Path
) -> None:
    [script] = [block.text for block in read_blocks("docs/how-to/scale.md") if "#SBATCH" in block.text]
    data = make_dataset(40, 30, strict=True)
    write_dataset(data, tmp_path)
    plan: dict[str, Any] = {"first_token": 0.3, "per_token": 0.0001, "model": "hltcoe/Rank-K-32B"}
    server = loopback(**plan)
    for old, new in {
        "srun rank-k": f"exec {sys.executable} -m rank_k.cli",  # one process per task, as srun starts it
        "bm25.trec": "run.trec",
        "corpus.jsonl.gz": "corpus.jsonl",
        MODEL_SERVER: server.url,
    }.items():
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "rerank.sbatch").write_text(script.replace("#!/bin/bash", f"#!/bin/bash\n#SBATCH --chdir={tmp_path}"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    submitted = subprocess.run(
        ["sbatch", "rerank.sbatch"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    [job] = re.findall(r"\d+", submitted.stdout)
    wait_until(lambda: len(server.calls) >= 4, "no task makes a call")
    running = re.findall(r"^(\d+) RUNNING", queue(), re.MULTILINE)
    subprocess.run(["scontrol", "requeue", f"{job}_{running[0]}"], check=True)
    deadline = time.monotonic() + LONG_PATIENCE  # Slurm starts a requeued task two minutes later
    while queue().strip():
        assert time.monotonic() < deadline, queue()
        time.sleep(1)
    logs = "\n".join(path.read_text() for path in tmp_path.glob("slurm-*.out"))
    parts = sorted(tmp_path.glob("part.*of16.trec"))
    assert len(parts) == 16, logs
    command = [sys.executable, "-m", "rank_k.cli"]
    subprocess.run([*command, "merge", "reranked.trec", *parts], cwd=tmp_path, env=environment, check=True)
    files = ["--run", "run.trec", "--queries", "queries.jsonl", "--documents", "corpus.jsonl"]
    model = ["--server", server.url, "--model", "hltcoe/Rank-K-32B"]
    server.change(first_token=0.002)
    whole = [*command, "rerank", *files, *model, "--output", "whole.trec"]
    subprocess.run(whole, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "reranked.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()
