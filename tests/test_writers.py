import io
import json
import struct

import numpy as np
import pytest

from jaxdiff.run import logs


def write_lines(path, steps, resume_step=0):
    log = logs.JsonLog(path, resume_step=resume_step)
    for step in steps:
        log.write(step, {"loss": np.float32(1 / step), "bin_0": float("nan"), "note": "x", "skipped": 0})
    log.close()


def test_lines_are_strict_json_with_null_for_nan(tmp_path):
    write_lines(tmp_path / "deep" / "log.jsonl", [10])
    (line,) = (tmp_path / "deep" / "log.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 10,
        "loss": pytest.approx(0.1),
        "bin_0": None,
        "note": "x",
        "skipped": 0,
    }


@pytest.mark.parametrize("torn", [b"", b'{"step": 60, "lo', b'{"step": 60, "loss": 1.0}'])
def test_resumed_file_equals_that_of_an_uninterrupted_run(tmp_path, torn):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write_lines(whole, range(10, 101, 10))
    write_lines(killed, range(10, 51, 10))
    with killed.open("ab") as file:
        file.write(torn)
    write_lines(killed, range(40, 101, 10), resume_step=30)
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "whole"]


def test_a_torn_last_line_goes_even_when_its_step_is_kept(tmp_path):
    path = tmp_path / "log"
    write_lines(path, [10, 20])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    write_lines(path, [20], resume_step=10)
    assert path.read_bytes() == whole


def test_starting_anew_empties_and_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "log"
    write_lines(path, [10, 20])
    write_lines(path, [5])
    assert len(path.read_text().splitlines()) == 1
    path.write_text("hello\n")
    with pytest.raises(ValueError, match=r"line 1 is not a line of this log: b'hello'"):
        logs.JsonLog(path, resume_step=3)
    assert path.read_text() == "hello\n"


def read_events(folder):
    """Records of TensorBoard's format: length, its checksum, the record, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return events


def test_tensorboard_files_hold_the_scalars_and_purge_on_resume(tmp_path):
    log = logs.TensorBoardLog(tmp_path)
    log.write(5, {"loss": 0.25, "bin_1": float("nan"), "note": "x"})
    log.image(5, "samples", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        log.image(5, "samples", np.zeros((4, 6, 3), np.float32))
    log.close()
    values = [(e.step, v.tag, v) for e in read_events(tmp_path) for v in e.summary.value]
    assert [(s, t) for s, t, _ in values] == [(5, "loss"), (5, "samples")]
    assert values[0][2].simple_value == 0.25
    assert (values[1][2].image.height, values[1][2].image.width) == (4, 6)
    log = logs.TensorBoardLog(tmp_path / "again", resume_step=3)
    log.write(4, {"loss": 1.0})
    log.close()
    starts = [e.step for e in read_events(tmp_path / "again") if e.HasField("session_log")]
    assert starts == [4]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_counts_from_the_resumed_step(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    bar = logs.Progress(100, initial=40, batch=8, every_seconds=10.0, stream=out)
    for step in range(41, 61):
        clock[0] += 1.0
        bar.update(step, {"loss": 0.5} if step == 50 else None)
    bar.close()
    assert out.getvalue().splitlines() == [
        "step 50/100, loss 0.5, 8 images/s, 0:00:50 left",
        "step 60/100, loss 0.5, 8 images/s, 0:00:40 left",
        "step 60/100, loss 0.5, 8 images/s, 0:00:40 left",
    ]
    with pytest.raises(ValueError, match="got 5, 3, 1"):
        logs.Progress(3, initial=5)


def test_progress_is_a_bar_on_a_terminal():
    out = Terminal()
    bar = logs.Progress(4, batch=2, stream=out)
    for step in range(1, 5):
        bar.update(step, {"loss": 0.5})
    bar.close()
    assert "4/4" in out.getvalue() and "loss 0.5" in out.getvalue() and "images/s" in out.getvalue()


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(logs.jax, "process_index", lambda: 1)
    out = io.StringIO()
    log, board = logs.JsonLog(tmp_path / "log"), logs.TensorBoardLog(tmp_path / "board")
    bar = logs.Progress(2, every_seconds=0.0, stream=out)
    for writer in (log, board):
        writer.write(1, {"loss": 1.0})
    bar.update(1)
    for writer in (log, board, bar):
        writer.close()
    assert not list(tmp_path.iterdir()) and not out.getvalue()
