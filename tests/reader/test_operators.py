"""Every operator of the table against ONNX's own tests of single nodes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper

from tests.support.node_cases import node_cases, read_case, write_cases
from trtq.errors import TrtqError
from trtq.ops.lookup import TABLE
from trtq.reader import read_onnx
from trtq.reader.call import reader_of

FAST = [
    "test_abs",
    "test_add_bcast",
    "test_and_bcast3v1d",
    "test_argmax_keepdims_random_select_last_index",
    "test_averagepool_2d_ceil",
    "test_averagepool_2d_pads_count_include_pad",
    "test_averagepool_2d_same_lower",
    "test_basic_conv_with_padding",
    "test_batchnorm_example",
    "test_celu",
    "test_clip_default_min",
    "test_clip_example",
    "test_concat_2d_axis_1",
    "test_conv_with_autopad_same",
    "test_conv_with_strides_and_asymmetric_padding",
    "test_convtranspose_autopad_same",
    "test_convtranspose_output_shape",
    "test_convtranspose_pads",
    "test_cumsum_2d_axis_1",
    "test_depthtospace_crd_mode_example",
    "test_depthtospace_example",
    "test_div_uint8",
    "test_dropout_default",
    "test_einsum_batch_matmul",
    "test_elu",
    "test_erf",
    "test_expand_dim_changed",
    "test_eyelike_with_dtype",
    "test_flatten_axis2",
    "test_gather_elements_1",
    "test_gather_negative_indices",
    "test_gathernd_example_int32_batch_dim1",
    "test_gelu_tanh_1",
    "test_gemm_all_attributes",
    "test_gemm_transposeB",
    "test_globalaveragepool",
    "test_globalmaxpool",
    "test_gridsample",
    "test_group_normalization_example",
    "test_hardmax_axis_0",
    "test_hardsigmoid",
    "test_hardswish",
    "test_instancenorm_example",
    "test_isinf_negative",
    "test_layer_normalization_4d_axis_negative_1",
    "test_leakyrelu",
    "test_logsoftmax_axis_1",
    "test_lrn",
    "test_lstm_with_initial_bias",
    "test_matmul_3d",
    "test_max_example",
    "test_maxpool_2d_ceil",
    "test_maxpool_2d_dilations",
    "test_maxpool_2d_same_upper",
    "test_mish",
    "test_mod_mixed_sign_float32",
    "test_mvn",
    "test_nonmaxsuppression_suppress_by_IOU",
    "test_nonzero_example",
    "test_edge_pad",
    "test_reflect_pad",
    "test_pow_types_int64_float32",
    "test_prelu_broadcast",
    "test_reduce_l1_keep_dims_random",
    "test_reduce_log_sum_exp_keepdims_random",
    "test_reduce_mean_negative_axes_keepdims_random",
    "test_reduce_prod_keepdims_random",
    "test_reduce_sum_empty_axes_input_noop",
    "test_reshape_zero_and_negative_dim",
    "test_resize_downsample_scales_linear",
    "test_resize_upsample_scales_cubic",
    "test_resize_upsample_scales_linear_align_corners",
    "test_resize_upsample_scales_nearest",
    "test_reversesequence_batch",
    "test_rnn_seq_length",
    "test_roialign_aligned_false",
    "test_scatter_elements_with_axis",
    "test_scatternd_add",
    "test_selu",
    "test_shape_start_1_end_2",
    "test_shrink_soft",
    "test_size",
    "test_slice_neg_steps",
    "test_softmax_axis_0",
    "test_softplus",
    "test_softsign",
    "test_spacetodepth_example",
    "test_split_variable_parts_2d_opset18",
    "test_squeeze_negative_axes",
    "test_sum_example",
    "test_thresholdedrelu",
    "test_tile",
    "test_top_k_smallest",
    "test_transpose_all_permutations_3",
    "test_tril_neg",
    "test_unsqueeze_two_axes",
    "test_where_example",
    "test_xor4d",
]
BY_RUNTIME = {  # integers that torch does not pad, an axis that is not stored, NMS
    "test_nonmaxsuppression_suppress_by_IOU",
    "test_edge_pad",
    "test_reflect_pad",
    "test_cumsum_2d_axis_1",
}


def _answers(case):
    module = read_onnx(case.model)
    with torch.no_grad():
        given = (torch.from_numpy(np.array(a)) for a in case.inputs)
        got = module(*(t.float() if t.dtype == torch.float64 else t for t in given))
    return module, [got[o.name].numpy() for o in module.outputs]


def _assert_same(case, got):
    for answer, wanted in zip(got, case.outputs, strict=True):
        assert answer.shape == wanted.shape
        # DOUBLE becomes FLOAT, everything else is kept.
        assert answer.dtype == (np.float32 if wanted.dtype == np.float64 else wanted.dtype)
        np.testing.assert_allclose(answer, wanted, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="session")
def cases(once) -> Path:
    """The fast ones; making all of them takes ONNX 6 s."""
    return once("node-cases", lambda folder: write_cases(folder, FAST))


@pytest.mark.parametrize("name", FAST)
def test_an_operator_computes_what_onnx_expects(name, cases: Path):
    case = read_case(cases, name)
    module, got = _answers(case)
    _assert_same(case, got)
    assert bool(module.opaque_nodes()) == (name in BY_RUNTIME)


@pytest.mark.slow
def test_most_of_onnxs_own_tests_pass_and_the_rest_are_refused_by_name():
    read = opaque = 0
    wrong = []
    for case in node_cases().values():
        try:
            module, got = _answers(case)
        except TrtqError:
            continue  # a type or an op that neither torch nor ONNX Runtime has
        except TypeError as exc:
            assert "ndarray" in str(exc), case.name  # torch has no such type
            continue
        try:
            _assert_same(case, got)
        except AssertionError:
            wrong.append(case.name)
            continue
        opaque += bool(module.opaque_nodes())
        read += not module.opaque_nodes()
    assert read > 700, (read, opaque, wrong)
    assert len(wrong) < 40, wrong


def test_every_reading_function_of_the_table_is_there():
    for row in TABLE:
        for kind in row.onnx:
            found = reader_of(helper.make_node(kind, [], []))
            assert callable(found) == bool(row.read), kind
