"""How the embedded server is tuned: settings for bulk loads, by this machine's memory and cores.

Only values belong here; `postgres.py` writes them to the data folder. A server of the user's own is
never touched.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import psutil

from metalayer.warehouse.archiving import archiving, spool_of

_MB = 1024 * 1024


def tuned(pgdata: Path) -> dict[str, str]:
    """Server settings for bulk loads on this machine, as PostgreSQL names and values.

    Memory counts the container's limit. The figures follow PostgreSQL's own advice for a machine
    shared with other programs, except where a comment says why not.
    """
    memory = _memory() // _MB
    cores = os.cpu_count() or 1
    free = shutil.disk_usage(pgdata).free // _MB
    settings = {
        # Memory.
        "shared_buffers": f"{max(128, min(memory // 4, 2048))}MB",
        "effective_cache_size": f"{max(256, memory // 2)}MB",
        "work_mem": f"{max(8, min(memory // 128, 128))}MB",
        "maintenance_work_mem": f"{max(64, min(memory // 16, 1024))}MB",
        # Bulk loads: seldom a checkpoint, and no log for rows copied into a partition made in the
        # same transaction (which is what `minimal` gives; a home with backups needs more).
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_wal_size": f"{max(256, min(8192, free // 8))}MB",
        "min_wal_size": f"{max(80, min(1024, free // 32))}MB",
        "wal_buffers": "32MB",
        "checkpoint_timeout": "30min",
        # Queries over many monthly partitions.
        "jit": "off",
        "max_locks_per_transaction": "1024",
        "max_connections": "100",
        "random_page_cost": "1.1",
        "max_worker_processes": str(max(8, cores + 4)),
        "max_parallel_workers": str(cores),
        "max_parallel_workers_per_gather": str(max(1, min(4, cores // 2))),
        # One meaning of a date everywhere.
        "timezone": "UTC",
        "datestyle": "ISO, YMD",
        # The log may be shown to others: no values of rows, no statements.
        "log_timezone": "UTC",
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        "log_checkpoints": "off",
        "unix_socket_permissions": "0700",
    }
    if sys.platform == "linux":
        # The sessions of a killed command end, and let go of their locks.
        settings["client_connection_check_interval"] = "5s"
        # Containers often have 64 MB of /dev/shm, too little for parallel queries.
        shm = Path("/dev/shm")  # noqa: S108
        if not shm.is_dir() or shutil.disk_usage(shm).free < 512 * _MB:
            settings["dynamic_shared_memory_type"] = "sysv"
    if spool_of(pgdata).is_dir():
        settings |= archiving(pgdata)
    return settings


def _memory() -> int:
    """Bytes of memory: the machine's, or the container's limit when that is less."""
    memory = int(psutil.virtual_memory().total)
    with contextlib.suppress(OSError, ValueError):
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory
