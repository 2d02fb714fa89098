"""SHD, SSC, DVS-Gesture and N-Caltech101, on small files in their published layouts."""

import struct

import numpy as np
import pytest
from cut_runs import run

from snn_dfa.experiments.data.event_sets import dvs_gesture, ncaltech101, shd, ssc
from snn_dfa.experiments.settings import UsageError

STEPS = 4
TINY = ["--steps", "4", "--hidden", "6", "--epochs", "1", "--batch-size", "8"]


# -- SHD and SSC -----------------------------------------------------------------------------------


def write_spoken(root, name, parts, classes=3):
    h5py = pytest.importorskip("h5py")
    for part in parts:
        with h5py.File(root / f"{name}_{part}.h5", "w") as file:
            labels = [i % classes for i in range(12)]
            spikes = file.create_group("spikes")
            kinds = {"times": np.float32, "units": np.int64}
            for what, kind in kinds.items():
                spikes.create_dataset(what, (12,), h5py.vlen_dtype(kind))
            for i, label in enumerate(labels):
                spikes["times"][i] = np.array([0.0, 0.36, 9.0], np.float32)
                spikes["units"][i] = np.array([label, 10 * label, 699])
            file["labels"] = np.array(labels)


def test_spoken_digits_fall_into_their_steps(tmp_path):
    write_spoken(tmp_path, "shd", ("train", "test"))
    for spikes, labels in shd(tmp_path, STEPS):
        assert spikes.shape == (12, STEPS, 1, 1, 700)
        assert labels.tolist() == [0, 1, 2] * 4
        # 0.36 of 1.4 s is in the second of four steps; what comes later is in the last.
        assert spikes[2].nonzero().tolist() == [[0, 0, 0, 2], [1, 0, 0, 20], [3, 0, 0, 699]]
    (spikes, _), _ = shd(tmp_path, STEPS, 10)
    assert spikes.shape[-1] == 70
    assert spikes[2].nonzero().tolist() == [[0, 0, 0, 0], [1, 0, 0, 2], [3, 0, 0, 69]]


def test_the_validation_part_of_speech_commands_is_trained_on(tmp_path):
    (tmp_path / "SSC").mkdir()
    write_spoken(tmp_path / "SSC", "ssc", ("train", "valid", "test"))
    (spikes, labels), (test, _) = ssc(tmp_path, STEPS)
    assert (len(spikes), len(labels), len(test)) == (24, 24, 12)
    assert spikes[2].nonzero().tolist()[1] == [1, 0, 0, 20]  # 0.36 of 1 s


@pytest.mark.slow
def test_a_recurrent_network_is_trained_on_spoken_digits(tmp_path, capsys):
    write_spoken(tmp_path, "shd", ("train", "test"))
    assert run("train", "--dataset", "shd", "--data-root", tmp_path, *TINY,
               "--out", tmp_path / "out") == 0  # fmt: skip
    assert "test accuracy" in capsys.readouterr().out
    assert "neuron: recurrent" in (tmp_path / "out" / "experiment.yaml").read_text()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-700])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "shd_train.h5").unlink(), "expected shd_train.h5 in"),
        (lambda r: (r / "shd_test.h5").unlink(), "no readable recordings in"),
        (lambda r: truncate(r / "shd_train.h5"), "no readable recordings in"),
        (lambda r: (r / "shd_train.h5").write_bytes(b"PK no"), "no readable recordings in"),
        (lambda r: write_foreign(r / "shd_train.h5"), "expected spikes/times, spikes/units"),
    ],
)
def test_a_file_that_is_not_shds_is_one_line(tmp_path, capsys, damage, message):
    write_spoken(tmp_path, "shd", ("train", "test"))
    damage(tmp_path)
    assert run("train", "--dataset", "shd", "--data-root", tmp_path, "--out", tmp_path / "o") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def write_foreign(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)


# -- DVS-Gesture -----------------------------------------------------------------------------------


def packet(events, kind=1, overflow=0):
    """A packet of AEDAT 3.1 of events (x, y, polarity, microseconds, valid)."""
    head = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, len(events), len(events), len(events))
    body = b"".join(
        struct.pack("<II", x << 17 | y << 2 | p << 1 | v, t) for x, y, p, t, v in events
    )
    return head + body


HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"


def write_gestures(root):
    lines = ["class,startTime_usec,endTime_usec"]
    events = []
    for gesture in (1, 2, 3):
        start = 1000 * gesture
        lines.append(f"{gesture},{start},{start + 400}")
        events += [(5, 7, 1, start, 1), (120, 3, 0, start + 150, 1), (9, 9, 1, start + 200, 0)]
    for user in ("user01_led", "user02_led"):
        other = packet([(1, 1, 1, 1, 1)], kind=0)  # not of polarity
        (root / f"{user}.aedat").write_bytes(
            HEADER + packet(events[:4]) + other + packet(events[4:])
        )
        (root / f"{user}_labels.csv").write_text("\n".join(lines) + "\n")
    (root / "trials_to_train.txt").write_text("user01_led.aedat\n")
    (root / "trials_to_test.txt").write_text("user02_led.aedat\n")


def test_gestures_fall_into_their_steps(tmp_path):
    write_gestures(tmp_path)
    for spikes, labels in dvs_gesture(tmp_path, STEPS):
        assert spikes.shape == (3, STEPS, 2, 128, 128)
        assert labels.tolist() == [0, 1, 2]
        for one in spikes:
            assert one.nonzero().tolist() == [[0, 1, 7, 5], [1, 0, 3, 120]]
    (spikes, _), _ = dvs_gesture(tmp_path, STEPS, 4)
    assert spikes[0].nonzero().tolist() == [[0, 1, 1, 1], [1, 0, 0, 30]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "trials_to_train.txt").unlink(), "expected trials_to_train.txt in"),
        (lambda r: (r / "user02_led.aedat").unlink(), "no readable gestures in"),
        (lambda r: truncate_by(r / "user01_led.aedat", 5), "user01_led.aedat is truncated"),
        (lambda r: (r / "user01_led.aedat").write_bytes(b"no"), "is not in AEDAT 3.1"),
        (lambda r: (r / "user01_led_labels.csv").write_text("c,s,e\n12,1,2\n"), "has gesture 12"),
        (lambda r: (r / "user01_led_labels.csv").write_text("c,s,e\nx\n"), "no readable gestures"),
        (lambda r: (r / "trials_to_test.txt").write_text(""), "expected names of recordings"),
        (
            lambda r: (r / "user01_led.aedat").write_bytes(HEADER + packet([(128, 0, 1, 1, 1)])),
            "other than 128x128 pixels",
        ),
    ],
)
def test_files_that_are_no_gestures_are_told(tmp_path, damage, message):
    write_gestures(tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=message) as told:
        dvs_gesture(tmp_path, STEPS)
    assert "\n" not in str(told.value)


def truncate_by(path, count):
    path.write_bytes(path.read_bytes()[:-count])


# -- N-Caltech101 ----------------------------------------------------------------------------------


def write_objects(root):
    for name in ("airplanes", "chair"):
        folder = root / "Caltech101" / name
        folder.mkdir(parents=True)
        for i in range(5):
            x, y, time = 200 + i, 100, 100_000
            event = bytes([x, y, 0x80 | time >> 16, time >> 8 & 255, time & 255])
            (folder / f"image_{i:04}.bin").write_bytes(event)


def test_objects_are_split_alike_each_time(tmp_path):
    write_objects(tmp_path)
    for _ in range(2):
        (spikes, labels), (test, test_labels) = ncaltech101(tmp_path, 3, 4)
        assert spikes.shape == (8, 3, 2, 45, 60)
        assert labels.bincount().tolist() == [4, 4]
        assert test_labels.tolist() in ([0, 1], [1, 0])
        # 100 of 300 ms: the second of three steps.
        assert test[0].nonzero().tolist() in ([[1, 1, 25, x]] for x in (50, 51))


def test_objects_that_are_none_are_told(tmp_path):
    with pytest.raises(UsageError, match="expected Caltech101 in"):
        ncaltech101(tmp_path, STEPS)
    write_objects(tmp_path)
    (tmp_path / "Caltech101" / "empty").mkdir()
    with pytest.raises(UsageError, match="got fewer in empty"):
        ncaltech101(tmp_path, STEPS)
    (tmp_path / "Caltech101" / "empty").rmdir()
    truncate_by(tmp_path / "Caltech101" / "chair" / "image_0000.bin", 1)
    with pytest.raises(UsageError, match="expected a whole number of events"):
        ncaltech101(tmp_path, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write"), [("dvs-gesture", write_gestures), ("ncaltech101", write_objects)]
)
def test_convolutions_are_trained_on_recordings(tmp_path, capsys, name, write):
    write(tmp_path)
    tiny = ["--steps", 2, "--downsample", 8, "--hidden", "2c3,mp2", "--epochs", 1]
    assert run("train", "--dataset", name, "--data-root", tmp_path, *tiny, "--shift", 0,
               "--out", tmp_path / "out") == 0  # fmt: skip
    assert "test accuracy" in capsys.readouterr().out
