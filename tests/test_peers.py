"""What process 0 decides from the heartbeats of all, without any process."""

from jaxdiff.distributed.peers import BROKEN, Beat, Verdict, judge

FIRST = Verdict()


def decide(beats, *, last=FIRST, seen=None, now=100.0, timeout=60.0):
    return judge(last, dict(enumerate(beats)), seen or {i: (0, 99.0) for i in range(3)}, now, timeout=timeout)


def running(number=1, step=5, **more):
    return Beat(number=number, step=step, **more)


def test_beats_are_counted_and_nothing_is_decided_while_all_run():
    verdict, seen = decide([running(), running(2), running(3)])
    assert verdict == Verdict(number=1) and seen == {0: (1, 100.0), 1: (2, 100.0), 2: (3, 100.0)}
    verdict, seen = decide([running(), running(2), running(4)], last=verdict, seen=seen, now=101.0)
    assert verdict == Verdict(number=2) and seen == {0: (1, 100.0), 1: (2, 100.0), 2: (4, 101.0)}


def test_a_process_without_a_new_beat_is_gone_sooner_where_a_collective_broke():
    seen = {0: (1, 100.0), 1: (1, 80.0), 2: (1, 100.0)}
    beats = [running(2), running(1, step=None), running(2)]
    assert decide(beats, seen=seen)[0].end == ""
    assert decide(beats, seen=seen, now=140.5)[0].end == "process 1 is gone before the first step"
    beats[2] = running(2, state="broken")
    assert decide(beats, seen=seen, now=80.0 + BROKEN + 0.1)[0].end == "process 1 is gone before the first step"
    beats[1] = running(1, state="done")
    assert decide(beats, seen=seen, now=1e6)[0].end == ""


def test_a_process_that_never_sent_a_beat_is_gone_too():
    assert decide([running(), running()], now=159.1)[0].end == "process 2 is gone before the first step"
    assert decide([running(), running()], now=158.9)[0] == Verdict(number=1)


def test_an_error_is_told_with_its_step_and_words():
    verdict, _ = decide([running(), running(state="failed", text="ValueError: no"), running()])
    assert verdict.end == "process 1 ended with an error at step 5 (ValueError: no)"


def test_all_freeze_and_then_stop_behind_the_furthest():
    verdict, _ = decide([running(), running(asked=True), running(step=7)])
    assert verdict.freeze and verdict.stop is None
    frozen = [running(frozen=True), running(asked=True, frozen=True), running(step=7)]
    assert decide(frozen, last=verdict)[0].stop is None
    frozen[2] = running(step=8, frozen=True)
    verdict, _ = decide(frozen, last=verdict)
    assert verdict.stop == 9
    assert decide([beat._replace(step=9) for beat in frozen], last=verdict)[0].stop == 9


def test_all_are_done_when_the_last_is():
    done = running(state="done")
    assert not decide([done, done, running()])[0].done and decide([done, done, done])[0].done
    assert not decide([done, done])[0].done
