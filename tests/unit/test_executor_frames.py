"""Frames never wait for the bus: one that cannot be sent is counted as lost, and its number is not given to another."""

from uuid import uuid4

from nats.aio.client import Client
from prometheus_client import CollectorRegistry

from services.executor.frames import Frames
from services.executor.metrics import ExecutorMetrics


async def test_frame_that_cannot_be_sent_is_counted_and_keeps_its_number() -> None:
    registry = CollectorRegistry()
    frames = Frames(Client(), "gateway", uuid4(), ExecutorMetrics(registry).frames_lost)
    await frames.text("Rain")
    await frames.text(" falls")
    assert frames.seq == 2
    assert registry.get_sample_value("x402jobs_frames_lost_total") == 2
