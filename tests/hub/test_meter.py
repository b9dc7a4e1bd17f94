"""How fast downloads are: bytes over the seconds in which at least one was on its way."""

import pytest

from moe4.hub.meter import CHANGE_SECONDS, DownloadMeter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_only_the_time_with_something_on_its_way_counts() -> None:
    clock = Clock()
    meter = DownloadMeter(clock)
    said: list[str] = []
    meter.say = said.append
    meter.begin([3000, 1000])
    assert (meter.rate(), meter.seconds_left(), meter.describe()) == (0, 0, "")
    with meter.shard("a"):
        clock.now += 1.0
        with meter.shard("b"):
            assert meter.describe() == "fetching a, b, 0 B/s"
            clock.now += 1.0
            meter.received(1000)
        clock.now += 2.0
        meter.received(1000)
        assert (meter.rate(), meter.seconds_left()) == (500, 4)
        meter.received(1000)
        meter.received(1000)
    clock.now += 100.0  # idle
    assert (meter.rate(), meter.seconds_left(), meter.describe()) == (1000, 0, "")
    assert said == [
        "fetched b, 1 of 2: 500 B/s, 0:00:06 of downloads left",
        "fetched a, 2 of 2: 1.0 kB/s, 0:00:00 of downloads left",
    ]


def test_what_is_there_already_is_not_downloaded() -> None:
    clock = Clock()
    meter = DownloadMeter(clock)
    said: list[str] = []
    meter.say = said.append
    meter.begin([500, 500, 500])
    meter.skip(500, whole=True)
    meter.skip(100, whole=False)
    with meter.shard("c"):
        clock.now += 1.0
        meter.received(300)
        assert meter.seconds_left() == pytest.approx(2.0)
        meter.received(-100)  # a server that began anew
        assert meter.seconds_left() == pytest.approx(3.5)
    assert said == ["fetched c, 1 of 2: 200 B/s, 0:00:04 of downloads left"]


def test_a_download_that_fails_is_not_said_to_be_there() -> None:
    meter = DownloadMeter(Clock())
    said: list[str] = []
    meter.say = said.append
    with pytest.raises(OSError, match="gone"), meter.shard("a"):
        raise OSError("gone")
    assert said == []
    assert meter.describe() == ""


def test_changes_are_told_now_and_then() -> None:
    clock, told = Clock(), []
    meter = DownloadMeter(clock)
    meter.on_change = lambda: told.append(clock.now)
    for _ in range(6):
        meter.received(1)
        clock.now += CHANGE_SECONDS / 2
    assert told == [100.0, 100.0 + CHANGE_SECONDS, 100.0 + 2 * CHANGE_SECONDS]
