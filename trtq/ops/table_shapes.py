"""Operators that move, choose, join or make values without computing any, and Q/DQ pairs."""

from __future__ import annotations

from trtq.ops.row import Op, op

_ALIAS = {"cost": "alias"}

SHAPES: tuple[Op, ...] = (
    # ---- another order or shape ------------------------------------------------------------------
    op(
        "identity",
        "alias.default clone.default detach.default detach_.default lift_fresh_copy.default "
        "contiguous.default",
        "Identity",
        traits="reorder no_op",
        **_ALIAS,
    ),
    op(
        "dropout",
        "dropout.default feature_dropout.default alpha_dropout.default "
        "feature_alpha_dropout.default",
        "Dropout",
        traits="reorder no_op may_alias",
        **_ALIAS,
    ),
    op(
        "reshape",
        "reshape.default view.default _unsafe_view.default",
        "Reshape",
        traits="reorder attention",
        write="shapes.reshape",
        **_ALIAS,
    ),
    op(
        "flatten",
        "flatten.using_ints unflatten.int reshape_as.default view_as.default",
        "Flatten",
        traits="reorder",
        **_ALIAS,
    ),
    op(
        "permute",
        "permute.default",
        "Transpose",
        traits="reorder attention",
        write="shapes.permute",
        **_ALIAS,
    ),
    op(
        "transpose",
        "transpose.int t.default",
        traits="reorder attention",
        write="shapes.transpose",
        **_ALIAS,
    ),
    op("movedim", "movedim.int", traits="reorder", **_ALIAS),
    op(
        "unsqueeze",
        "unsqueeze.default",
        "Unsqueeze",
        traits="reorder attention",
        write="shapes.unsqueeze",
        **_ALIAS,
    ),
    op(
        "squeeze",
        "squeeze.dim squeeze.dims squeeze.default",
        "Squeeze",
        traits="reorder attention",
        write="shapes.squeeze",
        **_ALIAS,
    ),
    op("roll", "roll.default", traits="shape_only", write="shapes.roll"),
    op("flip", "flip.default", write="shapes.flip"),
    op(
        "pixel_shuffle",
        "pixel_shuffle.default",
        "DepthToSpace",
        traits="moves moves_codes",
        write="shapes.pixel_shuffle",
    ),
    op("pixel_unshuffle", "pixel_unshuffle.default", "SpaceToDepth", traits="moves moves_codes"),
    # ---- some of the values, or some of them repeatedly ------------------------------------------
    op(
        "slice",
        "slice.Tensor",
        "Slice",
        traits="shape_only moves moves_codes",
        write="shapes.cut",
        **_ALIAS,
    ),
    op(
        "select",
        "select.int",
        "Gather",
        traits="moves moves_codes",
        write="shapes.select",
        **_ALIAS,
    ),
    op(
        "split",
        "split_with_sizes.default split.Tensor chunk.default",
        "Split",
        traits="moves moves_codes",
        write="shapes.split",
        **_ALIAS,
    ),
    op("unbind", "unbind.int", **_ALIAS),
    op("getitem", "operator.getitem", write="shapes.getitem", **_ALIAS),
    op(
        "expand",
        "expand.default",
        "Expand",
        traits="moves moves_codes attention",
        write="shapes.expand",
        **_ALIAS,
    ),
    op("expand_as", "expand_as.default", write="shapes.expand_as", **_ALIAS),
    op("broadcast_tensors", "broadcast_tensors.default", traits="may_alias"),
    op("repeat", "repeat.default", "Tile", traits="moves moves_codes", write="shapes.repeat"),
    op("index", "index.Tensor", write="shapes.index"),
    op("index_select", "index_select.default", write="shapes.index_select"),
    op("embedding", "embedding.default", write="shapes.embedding"),
    op("cat", "cat.default", "Concat", traits="moves_codes", write="shapes.cat"),
    op("stack", "stack.default", write="shapes.stack"),
    op("pad", "pad.default constant_pad_nd.default", "Pad", traits="moves", write="shapes.pad"),
    op("glu", "glu.default", write="elementwise.glu"),
    # ---- types, sizes and constants --------------------------------------------------------------
    op(
        "cast",
        "to.dtype _to_copy.default type_as.default",
        "Cast",
        write="elementwise.cast",
        **_ALIAS,
    ),
    op("sym_size", "sym_size.int", "Shape", write="shapes.sym_size"),
    op("zeros", "zeros.default", write="fill.zeros"),
    op("ones", "ones.default", write="fill.ones"),
    op("full", "full.default", write="fill.full"),
    op("zeros_like", "zeros_like.default", write="fill.zeros_like"),
    op("ones_like", "ones_like.default", write="fill.ones_like"),
    op("full_like", "full_like.default", write="fill.full_like"),
    op("new_zeros", "new_zeros.default", write="fill.new_zeros"),
    op("new_ones", "new_ones.default", write="fill.new_ones"),
    op("new_full", "new_full.default", write="fill.new_full"),
    op(
        "random",
        "",
        "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli",
        traits="random",
    ),
    # ---- quantization ----------------------------------------------------------------------------
    op(
        "fake_quantize",
        "trtq.fake_quantize.default",
        "QuantizeLinear DequantizeLinear",
        kind="quantize",
        write="qdq.pair",
        **_ALIAS,
    ),
)
