"""Plugins that stand still: the engine notices, ends them, and goes on exactly."""

import os
import signal
import subprocess

import pytest
from tests.e2e.bad_plugin import Peer
from tests.e2e.tail_pipeline import TOKEN, TailPipeline
from tests.e2e.yard import BETTONG, Yard, wait_until

from bettong_proto.plugin.v1 import error_pb2

pytestmark = pytest.mark.e2e

PINGS = "ping_interval_ms = 100\nping_timeout_ms = 2000\n"


@pytest.mark.parametrize("plugin", ["source", "compute", "sink"])
def test_frozen_plugin_is_replaced(yard: Yard, plugin: str) -> None:
    good = TailPipeline(yard, limits=PINGS)
    frozen = good.pid_of(plugin)

    os.kill(frozen, signal.SIGSTOP)

    good.proves_exact()
    gone = [e for e in good.engine.events("plugin_gone") if e["plugin"] == plugin]
    assert [e["code"] for e in gone] == ["PLUGIN_SILENT"]
    assert good.pid_of(plugin) != frozen
    assert frozen not in yard.pids("compute", "source", "sink", "other")


def test_attached_plugin_that_plays_dead_is_told(yard: Yard) -> None:
    good = TailPipeline(yard, limits=PINGS)

    with Peer(good.address, answers_pings=False) as dead:
        assert dead.hello(TOKEN).HasField("welcome")
        dead.serve_control()
        error = dead.is_told()

    assert error.code == error_pb2.ERROR_CODE_PLUGIN_SILENT
    assert error.error_class == error_pb2.ERROR_CLASS_FATAL
    good.proves_exact()


def test_user_code_that_hangs_once_is_run_again_elsewhere(yard: Yard) -> None:
    mend = yard.place / "mended"
    limits = "ping_interval_ms = 100\nbatch_timeout_ms = 1500"
    good = TailPipeline(yard, limits=limits, words=(f"mend={mend}",))

    good.feed(mood="hang-once")

    good.proves_exact()
    gone = good.engine.events("plugin_gone")
    assert [(e["plugin"], e["code"]) for e in gone] == [("compute", "BATCH_TIMEOUT")]
    assert "1500 ms" in gone[0]["why"]


def test_user_code_that_hangs_three_times_pauses_until_it_is_mended(yard: Yard) -> None:
    mend = yard.place / "mended"
    limits = "ping_interval_ms = 100\nbatch_timeout_ms = 500"
    good = TailPipeline(yard, limits=limits, words=(f"mend={mend}",))

    good.feed(mood="hang")

    wait_until(lambda: yard.status().state == "paused", "a pause")
    assert yard.status().cause.startswith("BATCH_TIMEOUT: ")
    assert "'compute'" in yard.status().cause
    assert len(good.engine.events("plugin_gone")) == 3
    mend.touch()
    resume = (*BETTONG, "resume", "--data-dir", str(yard.data))
    subprocess.run(resume, check=True, env=yard.environment())
    good.proves_exact()
    assert yard.status().state == "running"
