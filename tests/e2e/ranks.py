"""`lean` as a job of several ranks on this machine."""
import os
import shutil
import subprocess
import sys

import cli

BUILD = os.environ.get("LEAN_BUILD_DIR", os.path.dirname(os.path.abspath(cli.LEAN)))
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def why_no_mpi():
    """What is missing for several ranks; None: nothing is."""
    if not shutil.which("mpirun"):
        return "no mpirun: Open MPI is not installed"
    return None if os.path.exists(os.path.join(BUILD, "liblean_mpi.so")) else "built without MPI"


def skip_without_mpi():
    if why_no_mpi():
        print("skipped:", why_no_mpi())
        sys.exit(77)


def mpirun(n_rank, *args, input=None, timeout=120, **variables):
    """`lean ARGS` on ranks that mpirun starts; the CompletedProcess."""
    words = ["mpirun", "-q", "--oversubscribe", "--bind-to", "none", "-np", str(n_rank), cli.LEAN,
             *map(str, args)]
    return subprocess.run(words, input=input, text=True, capture_output=True, timeout=timeout,
                          env=cli.environment(**MPI, **variables),
                          stdin=subprocess.DEVNULL if input is None else None)


def lean(n_rank, *args, **more):
    """The same with 1 rank as no job at all."""
    return cli.lean(*args, **more) if n_rank == 1 else mpirun(n_rank, *args, **more)
