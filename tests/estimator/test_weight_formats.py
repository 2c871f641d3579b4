"""Weight formats: bytes of really packed arrays, and options that go together or not."""

from __future__ import annotations

import pytest

from estimator.errors import InputError
from estimator.memory import weight_bytes
from estimator.network import Weight
from estimator.weight_formats import FORMATS, weight_format
from estimator.workload import Workload

np = pytest.importorskip("numpy")
SHAPES = [(64, 128), (48, 200), (33, 7), (1, 1), (128, 4097)]


def _gptq(out, inner, group):
    """What AutoGPTQ allocates: qweight, qzeros, scales, g_idx."""
    groups = -(-inner // group)
    arrays = [np.zeros((inner // 8, out), np.int32), np.zeros((groups, out // 8), np.int32)]
    return sum(a.nbytes for a in [*arrays, np.zeros((groups, out), np.float16), np.zeros(inner, np.int32)])


@pytest.mark.parametrize(("out", "inner", "group"), [(64, 256, 128), (4096, 11008, 128), (32, 96, 32)])
def test_gptq_equals_the_tensors_of_its_linear_layer(out, inner, group):
    """Four bits, zero points of all outputs side by side, and the group of every input."""
    from estimator.readers.quantization_config import read_quantization

    table = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": True}
    quantization, warnings = read_quantization({"quantization_config": table})
    assert warnings == ()
    assert quantization.format.count_bytes(out, inner) == _gptq(out, inner, group)


@pytest.mark.parametrize(("out", "inner"), SHAPES)
def test_default_formats_equal_packed_arrays(out, inner):
    """fp8 and int8 with fp32 scales per row; int4, mxfp4 and nvfp4 in padded blocks; nf4 over the flat matrix."""

    def blocks(size):
        return -(-inner // size)

    flat = -(-out * inner // 64)
    expected = {
        "fp8": np.zeros((out, inner), np.uint8).nbytes + np.zeros(out, np.float32).nbytes,
        "int8": np.zeros((out, inner), np.int8).nbytes + np.zeros(out, np.float32).nbytes,
        "int4": np.zeros((out, blocks(32), 16), np.uint8).nbytes + np.zeros((out, blocks(32)), np.float16).nbytes,
        "mxfp4": np.zeros((out, blocks(32), 16), np.uint8).nbytes + np.zeros((out, blocks(32)), np.uint8).nbytes,
        "nvfp4": np.zeros((out, blocks(16), 8), np.uint8).nbytes + np.zeros((out, blocks(16)), np.uint8).nbytes + 4,
        "nf4": np.zeros(-(-out * inner // 2), np.uint8).nbytes + flat + 4 * -(-flat // 256) + 4,
    }
    assert {dtype: FORMATS[dtype].count_bytes(out, inner) for dtype in expected} == expected


@pytest.mark.parametrize(
    ("dtype", "size", "scales"),
    [
        ("fp8", "tensor", 1),
        ("fp8", "channel", 300),
        ("fp8", "128x128", 3 * 4),
        ("int8", "64", 300 * 8),
        ("int8", "tensor", 1),
        ("nf4", "128", 300 * 512 // 128),
    ],
)
def test_a_group_size_decides_the_number_of_scales(dtype, size, scales):
    """A matrix of 300 x 512."""
    form = weight_format(dtype, size)
    assert form.num_scales(300, 512) == scales
    assert form.count_bytes(300, 512) > form.element_bytes(300, 512) == 300 * 512 * form.bits // 8


def test_zero_points_and_small_groups_take_more():
    """int4 in groups of 128 < 64 < 32, each less than with zero points; a whole row is the least."""
    sizes = [weight_format("int4", size).count_bytes(256, 1024) for size in ("channel", "128", "64", "32")]
    assert sizes == sorted(set(sizes))
    with_points = [weight_format("int4", size, True).count_bytes(256, 1024) for size in ("channel", "128", "64", "32")]
    assert with_points == [size + 256 * -(-groups // 2) for size, groups in zip(sizes, (1, 8, 16, 32), strict=True)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bf16", "32", False), "bf16 weights have neither groups nor zero points"),
        (("fp32", None, True), "fp32 weights have neither groups nor zero points"),
        (("fp8", None, True), "fp8 weights have no zero points"),
        (("mxfp4", "64", False), "mxfp4 has blocks of its own"),
        (("int4", "0", False), "group size of int4 must be a number from 8"),
        (("int4", "128x128", False), "group size of int4 must be"),
        (("nf4", "channel", False), "group size of nf4 must be a number"),
        (("fp8", "12 8", False), "128x128"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, words):
    """One line that says what would be right."""
    with pytest.raises(InputError, match=words):
        weight_format(*arguments)


def test_copies_and_other_weights():
    """Experts count as often as there are; a bias and a router stay in the type of the activations."""
    workload = Workload(weight_dtype="mxfp4", activation_dtype="bf16")
    experts = Weight(name="experts.up_proj.weight", shape=(64, 32), copies=5)
    assert weight_bytes(experts, workload) == 5 * 64 * 17
    assert weight_bytes(Weight(name="gate.weight", shape=(5, 32), quantized=False), workload) == 5 * 32 * 2
    assert weight_bytes(Weight(name="up_proj.bias", shape=(64,), role="bias"), workload) == 128
