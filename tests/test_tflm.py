"""TFLite Micro on this machine: outputs, memory, what it lacks; and Vela's word on an NPU."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tflite_micro.python.tflite_micro import runtime

from onmetal.converters.tflite import io
from onmetal.converters.tflite.convert import to_float
from onmetal.converters.tflite.net import Net, Op, Tensor, constant
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reader import wide
from onmetal.converters.tflite.reference import interpreter
from onmetal.converters.tflite.writing import write
from onmetal.errors import DeviceError, UnsupportedError
from onmetal.records import plain
from onmetal.runtimes import fit
from onmetal.runtimes.tflm import flash, micro, profile, vela
from onmetal.runtimes.tflm import session as run_tflm
from onmetal.runtimes.tflm.session import Session
from tests.onnx_models import build, node, save, value
from tests.tflite_graphs import floats
from tests.tflite_nets import in_8_bits, small

NPU = plain(fit.load_target("ethos-u55-128").npu)


def test_an_input_of_no_axes_is_run_as_it_is(tmp_path: Path) -> None:
    ends = [value("x", [1, 4]), value("s", [])], [value("y", [1, 4])]
    model = build([node("Mul", "x s", "y", name="times")], *ends)
    to_float(str(save(model, tmp_path / "model.onnx")), str(tmp_path))
    session = Session([str(tmp_path / "model.tflite")], {}, ["x", "s"], ["y"])
    (found,) = session.run({"x": np.ones((1, 4), np.float32), "s": np.array(3, np.float32)})
    assert found.tolist() == [[3] * 4]


@pytest.fixture
def int8(tmp_path: Path) -> Path:
    return in_8_bits(small(tmp_path / "small", "Relu"))


class TestASession:
    def test_gives_floats_for_floats_as_litert_does(self, int8: Path) -> None:
        feed = floats(1, 3, 8, 8)
        found = Session([str(int8)], {}, ["x"], ["t0"]).run({"x": feed})[0]
        other = interpreter(int8.read_bytes())
        entry, given = other.get_input_details()[0], other.get_output_details()[0]
        scale, zero = entry["quantization"]
        other.set_tensor(
            entry["index"], np.clip(np.rint(feed / scale) + zero, -128, 127).astype(np.int8)
        )
        other.invoke()
        scale, zero = given["quantization"]
        wanted = (other.get_tensor(given["index"]).astype(np.float32) - zero) * np.float32(scale)
        assert found.shape == wanted.shape == (1, 8, 8, 8) and found.dtype == np.float32
        assert np.abs(found - wanted).max() <= scale * 1.01
        assert np.ptp(found) > 1

    def test_turns_what_has_channels_last(self, tmp_path: Path) -> None:
        path = in_8_bits(small(tmp_path / "small", "Relu"))
        plain_one = Session([str(path)], {}, ["x"], ["t0"]).run({"x": floats(1, 3, 8, 8)})[0]
        net = read(path)
        turned = io.channels_last(net)
        assert turned == ["x", "t0"]
        path.write_bytes(write(net))
        session = Session([str(path)], {"nhwc": turned}, ["x"], ["t0"])
        assert np.array_equal(session.run({"x": floats(1, 3, 8, 8)})[0], plain_one)

    def test_that_keeps_state_begins_anew_unless_it_is_told(self, tmp_path: Path) -> None:
        """A running sum in a variable tensor."""
        x, y = (Tensor(name, (1, 4), np.dtype(np.float32)) for name in ("x", "y"))
        taken: list[Tensor | None] = [
            x,
            constant("feature", np.eye(4, dtype=np.float32)),
            constant("time", np.ones((4, 2), np.float32)),
            constant("bias", np.zeros(4, np.float32)),
            Tensor("memory", (1, 8), np.dtype(np.float32), variable=True),
        ]
        net = Net([x], [y], [Op("SVDF", taken, [y], {"rank": 1})])
        path = tmp_path / "svdf.tflite"
        path.write_bytes(write(net))
        session = Session([str(path)], {"stateful": True}, ["x"], ["y"])
        one = np.ones((1, 4), np.float32)
        first = session.run({"x": one})[0]
        assert np.array_equal(session.run({"x": one})[0], first)
        assert np.array_equal(session.run({"x": one}, keep_state=True)[0], 2 * first)

    def test_knows_inputs_and_outputs_by_their_names(self, tmp_path: Path) -> None:
        """Whatever order they are asked for in."""
        one, two, out, twice = (
            Tensor(name, (1, 4), np.dtype(np.float32)) for name in ("one", "two", "out", "twice")
        )
        ops = [Op("SUB", [one, two], [out], {}), Op("ADD", [out, out], [twice], {})]
        path = tmp_path / "two.tflite"
        path.write_bytes(write(Net([one, two], [out, twice], ops)))
        feed = {"one": floats(1, 4), "two": floats(1, 4, seed=1)}
        session = Session([str(path)], {}, ["two", "one"], ["twice", "out"])
        found = session.run(feed)
        assert np.array_equal(found[1], feed["one"] - feed["two"])
        assert np.array_equal(found[0], 2 * found[1])

    def test_says_why_a_file_cannot_be_opened(self, tmp_path: Path) -> None:
        x, y = (Tensor(n, (1, 4), np.dtype(np.float32)) for n in ("x", "y"))
        path = tmp_path / "sign.tflite"
        path.write_bytes(write(Net([x], [y], [Op("SIGN", [x], [y])])))
        with pytest.raises(RuntimeError, match=r"TFLite Micro: .*SIGN"):
            Session([str(path)], {}, ["x"], ["y"])

    def test_leaves_standard_error_as_it_was(self, tmp_path: Path) -> None:
        code = (
            "import sys\nfrom onmetal.runtimes.tflm.session import said\n"
            "import os\n"
            "with said() as told:\n    os.write(2, b'within'); assert told() == 'within'\n"
            "os.write(2, b'after')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "after")


class TestTheArena:
    def test_is_told_by_category_and_adds_up(self, int8: Path) -> None:
        found = profile.arena({"x": floats(1, 3, 8, 8)}, [str(int8)], {}, ["x"], ["t0"])
        assert found["total"] == found["head"] + found["tail"]
        assert found["head"] % 16 == 0 and found["head"] >= 8 * 8 * 8 + 8 * 8 * 3
        kept = sum(entry["used"] for entry in found["categories"].values())
        assert "NodeAndRegistration struct" in found["categories"]
        assert 0 < kept <= found["tail"]
        assert all(e["requested"] <= e["used"] for e in found["categories"].values())

    def test_is_exactly_what_is_needed(self, int8: Path) -> None:
        """The interpreter opens with as many bytes, and not with fewer."""
        found = profile.arena({"x": floats(1, 3, 8, 8)}, [str(int8)], {}, ["x"], ["t0"])
        content, total = int8.read_bytes(), found["total"]
        runtime.Interpreter.from_bytes(content, arena_size=total + 16)
        with run_tflm.said(), pytest.raises(RuntimeError):
            runtime.Interpreter.from_bytes(content, arena_size=total - 64)

    def test_is_refused_where_the_words_are_not_understood(
        self, int8: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            runtime.Interpreter, "print_allocations", lambda self: None, raising=True
        )
        with pytest.raises(DeviceError, match="does not report its allocations"):
            profile.arena({"x": floats(1, 3, 8, 8)}, [str(int8)], {}, ["x"], ["t0"])

    def test_the_profile_tells_what_it_computes_in(self, int8: Path) -> None:
        found = profile.profile({"x": floats(1, 3, 8, 8)}, [str(int8)], {}, ["x"], ["t0"])
        assert found["precision"] == {"i8": 1.0}
        assert "CONV_2D" in found["operators"]


class TestWhatIsLacking:
    def test_nothing_of_what_it_runs(self, tmp_path: Path) -> None:
        path = small(tmp_path / "small", "Relu", "Sigmoid")
        for activation in ("s8", "s16", None):
            assert micro.lacking(path, activation) == []

    def test_every_operator_is_named_with_its_node(self, tmp_path: Path) -> None:
        path = small(tmp_path / "small", "Sign", "Relu", "Sign")
        found = micro.lacking(path, "s8")
        assert [row["operator"] for row in found] == ["SIGN", "SIGN"]
        assert [row["node"] for row in found] == ["Sign 'sign_1'", "Sign 'sign_3'"]
        assert all("SIGN" in row["reason"] and ".cc" not in row["reason"] for row in found)

    def test_where_the_node_is_not_known_the_tensor_is(self, tmp_path: Path) -> None:
        path = small(tmp_path / "small", "Sign")
        (path.parent / "makers.json").unlink()
        assert micro.lacking(path, None)[0]["node"] == "'t0'"

    def test_what_ends_the_process_is_a_reason_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The child is killed by a signal: the parent lives to tell."""
        path = small(tmp_path / "small", "Relu")
        monkeypatch.setattr(micro, "_answer", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        found = micro.lacking(path, None)
        assert found and all("SIGKILL" in row["reason"] for row in found)


class TestVela:
    def test_tells_cycles_by_memory_and_leaves_nothing_to_the_core(
        self, int8: Path, tmp_path: Path
    ) -> None:
        net = read(int8)
        io.channels_last(net)
        int8.write_bytes(write(net))
        found = vela.compile_(int8, NPU, tmp_path / "out.tflite")
        assert found["on_cpu"] == [] and found["cpu_operators"] == 0
        cycles = found["cycles"]
        assert cycles["total"] >= max(cycles["npu"], cycles["sram_access"]) > 0
        assert found["inference_ms"] == pytest.approx(cycles["total"] / 500e3)
        assert found["inferences_per_s"] == pytest.approx(1e3 / found["inference_ms"])
        assert found["memory_bytes"]["sram"] > 0 and found["memory_bytes"]["off_chip_flash"] > 0
        assert found["macs"] == 8 * 8 * 8 * 27 and 0 < found["utilisation"] <= 1
        assert found["layers"][0]["operator"] == "Conv2D" and found["layers"][0]["cycles"] > 0
        assert [op.custom for op in read(tmp_path / "out.tflite").ops] == ["ethos-u"]

    def test_names_what_is_left_to_the_core_and_why(self, tmp_path: Path) -> None:
        path = small(tmp_path / "small", "Relu")
        found = vela.compile_(path, NPU, tmp_path / "out.tflite")
        assert found["cpu_operators"] == len(found["on_cpu"]) > 0
        row = next(row for row in found["on_cpu"] if row["operator"] == "CONV_2D")
        assert "Float32" in row["reason"] and row["output"]

    def test_a_file_that_it_refuses_is_said_and_nothing_is_written(self, tmp_path: Path) -> None:
        (tmp_path / "bad.tflite").write_bytes(b"\0\0\0\0TFL3" + bytes(40))
        with pytest.raises(UnsupportedError, match="Vela does not compile it"):
            vela.compile_(tmp_path / "bad.tflite", NPU, tmp_path / "out.tflite")
        assert not (tmp_path / "out.tflite").exists()

    @pytest.mark.parametrize("name", ["ethos-u55-128", "ethos-u55-256", "ethos-u85-256"])
    def test_knows_every_configuration_that_ships(
        self, name: str, int8: Path, tmp_path: Path
    ) -> None:
        found = vela.compile_(int8, plain(fit.load_target(name).npu), tmp_path / "out.tflite")
        assert found["accelerator"].lower().replace("_", "-") == name
        assert found["cycles"]["total"] > 0

    def test_makes_the_same_file_twice(self, int8: Path, tmp_path: Path) -> None:
        for number in range(2):
            vela.compile_(int8, NPU, tmp_path / f"{number}.tflite")
        assert (tmp_path / "0.tflite").read_bytes() == (tmp_path / "1.tflite").read_bytes()


def test_the_nodes_are_kept_beside_the_float_file(tmp_path: Path) -> None:
    path = small(tmp_path / "small", "Sigmoid")
    made = json.loads((path.parent / "makers.json").read_text())
    assert "Sigmoid 'sigmoid_1'" in made.values() and "Conv 'conv_0'" in made.values()


def test_sixteen_bits_are_told_by_what_operators_give() -> None:
    """An LSTM of 8 bits keeps a state of 16."""

    def tensor(name: str, dtype: type) -> Tensor:
        found = Tensor(name, (1, 4), np.dtype(dtype), variable=name == "state")
        found.scale, found.zero_point = np.ones(1, np.float32), np.zeros(1, np.int64)
        return found

    state = tensor("state", np.int16)
    for dtype in (np.int8, np.int16):
        out = tensor("out", dtype)
        net = Net([], [out], [Op("SVDF", [tensor("x", np.int8), state], [out])])
        assert wide(net) is (dtype is np.int16)


class TestFlash:
    def test_the_file_is_weights_and_graph_and_equal_weights_count_once(
        self, int8: Path, tmp_path: Path
    ) -> None:
        found = flash.needs(str(int8), "cortex-m4")
        size = int8.stat().st_size
        assert found["weights_bytes"] + found["graph_bytes"] == size
        assert found["total_bytes"] == size + found["code_bytes"]
        net = read(int8)
        first = next(op for op in net.ops if op.kind == "CONV_2D")
        weights = sum(t.data.nbytes for t in first.taken if t.data is not None)
        assert found["weights_bytes"] >= weights
        twice = Tensor("again", first.outputs[0].shape, first.outputs[0].dtype, None)
        twice.scale, twice.zero_point = first.outputs[0].scale, first.outputs[0].zero_point
        net.ops.append(Op("CONV_2D", list(first.inputs), [twice], dict(first.options)))
        net.outputs.append(twice)
        net.names = None
        (tmp_path / "twice.tflite").write_bytes(write(net))
        other = flash.needs(str(tmp_path / "twice.tflite"), "cortex-m4")
        assert other["weights_bytes"] == found["weights_bytes"]
        assert other["code_bytes"] == found["code_bytes"]

    def test_more_kinds_of_operators_need_more_code(self, int8: Path, tmp_path: Path) -> None:
        more = in_8_bits(small(tmp_path / "more", "Relu", "Sigmoid"))
        for core in ("cortex-m4", "cortex-m55", None):
            few = flash.needs(str(int8), core)
            many = flash.needs(str(more), core)
            assert set(many["operators"]) > set(few["operators"])
            assert many["code_bytes"] > few["code_bytes"] > 40_000

    def test_floats_are_told(self, tmp_path: Path) -> None:
        path = small(tmp_path / "small", "Relu")
        assert not flash.needs(str(path), None)["whole_numbers"]
        assert flash.needs(str(in_8_bits(path)), None)["whole_numbers"]
