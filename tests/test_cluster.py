"""Workers on this machine: several runs side by side, and nobody else's business."""

import psutil

from histoquant import cluster


def test_two_runs_on_one_machine_do_not_quarrel_and_nobody_outside_reaches_them():
    """A warning is an error here: dask warns when its port is taken."""
    before = {c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}
    with cluster.workers(1) as first, cluster.workers(1) as second:
        assert [workers.submit(len, "ab").result() for workers in (first, second)] == [2, 2]
        listening = {c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert {address.ip for address in listening - before} <= {"127.0.0.1"}
