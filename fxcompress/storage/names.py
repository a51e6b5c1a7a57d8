"""The names that a saved graph may use. Whatever is not written here cannot be called by an archive.

Left out on purpose: everything that touches files, processes, threads, memory by address, global settings, or that
calls a function it is given (``torch.load``, ``from_file``, ``operator.call``, ``methodcaller``, ``apply_``, ``set_``, ...).
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Exist as torch.X, Tensor.X and torch.ops.aten.X, most of them also in place as X_.
TENSOR = _words("""
    abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr adjoint all allclose amax amin aminmax angle any arccos arccosh
    arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort argwhere asin asinh atan atan2 atanh baddbmm bernoulli bincount
    bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bmm broadcast_to ceil celu chunk clamp
    clamp_max clamp_min clip clone conj conj_physical copysign cos cosh count_nonzero cross cummax cummin cumprod cumsum deg2rad det
    detach diag diag_embed diagflat diagonal diff digamma dist div divide dot dropout elu eq equal erf erfc erfinv exp exp2 expm1 fix
    flatten flip fliplr flipud float_power floor floor_divide fmax fmin fmod frac gather gcd ge greater greater_equal gt hardshrink
    heaviside histc hypot i0 igamma index_add index_copy index_fill index_put index_reduce index_select inner inverse isclose isfinite
    isin isinf isnan isneginf isposinf isreal kron kthvalue lcm ldexp le lerp less less_equal lgamma log log10 log1p log2 log_softmax
    logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or logical_xor logit logsumexp lt masked_fill
    masked_scatter masked_select matmul matrix_exp matrix_power max maximum mean median min minimum mm mode moveaxis movedim msort mul
    multinomial multiply mv nan_to_num nanmean nanmedian nanquantile nansum narrow ne neg negative nextafter nonzero norm not_equal
    numel outer permute pinverse polygamma positive pow prelu prod quantile rad2deg ravel reciprocal relu remainder renorm
    repeat_interleave reshape resolve_conj resolve_neg roll rot90 round rsqrt rsub scatter scatter_add scatter_reduce select
    select_scatter selu sgn sigmoid sign signbit sin sinc sinh slice_scatter slogdet softmax sort split split_with_sizes sqrt square
    squeeze std sub subtract sum svd swapaxes swapdims t take take_along_dim tan tanh tensor_split threshold tile topk trace transpose
    tril triu true_divide trunc unbind unflatten unique unique_consecutive unsqueeze var vdot vsplit hsplit dsplit where xlogy hardtanh
    hardswish hardsigmoid leaky_relu silu mish fill zero is_complex is_floating_point is_nonzero is_same_size stft istft
""")

# Exist as torch.X only.
TORCH = _words("""
    _assert _shape_as_tensor arange as_tensor atleast_1d atleast_2d atleast_3d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d
    batch_norm bilinear block_diag broadcast_shapes broadcast_tensors bucketize cartesian_prod cat cdist channel_shuffle clamp_
    column_stack combinations complex concat concatenate constant_pad_nd conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d cosine_similarity cov corrcoef cumulative_trapezoid dstack einsum embedding embedding_bag empty empty_like eye
    feature_alpha_dropout feature_dropout alpha_dropout full full_like grid_sampler group_norm hamming_window hann_window hstack imag
    instance_norm is_tensor layer_norm linspace logspace max_pool1d max_pool2d max_pool3d meshgrid native_layer_norm native_group_norm
    native_batch_norm normal one_hot ones ones_like pairwise_distance pdist pixel_shuffle pixel_unshuffle polar promote_types rand
    rand_like randint randint_like randn randn_like randperm real result_type rms_norm row_stack rrelu scalar_tensor searchsorted stack
    std_mean sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt tensor tensordot trapezoid tril_indices triu_indices
    unravel_index unsafe_chunk unsafe_split vander var_mean view_as_complex view_as_real vstack zeros zeros_like
""")

# Exist as torch.nn.functional.X.
FUNCTIONAL = _words("""
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool1d_with_indices adaptive_max_pool2d
    adaptive_max_pool2d_with_indices adaptive_max_pool3d adaptive_max_pool3d_with_indices affine_grid alpha_dropout avg_pool1d
    avg_pool2d avg_pool3d batch_norm bilinear binary_cross_entropy binary_cross_entropy_with_logits celu celu_ channel_shuffle conv1d
    conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity cross_entropy dropout dropout1d
    dropout2d dropout3d elu elu_ embedding embedding_bag feature_alpha_dropout fold gelu glu grid_sample group_norm gumbel_softmax
    hardshrink hardsigmoid hardswish hardtanh hardtanh_ instance_norm interpolate kl_div l1_loss layer_norm leaky_relu leaky_relu_
    linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool1d max_unpool2d max_unpool3d mish mse_loss
    multi_head_attention_forward nll_loss normalize one_hot pad pairwise_distance pdist pixel_shuffle pixel_unshuffle prelu relu relu6
    relu_ rms_norm rrelu rrelu_ scaled_dot_product_attention selu selu_ sigmoid silu smooth_l1_loss softmax softmin softplus softshrink
    softsign tanh tanhshrink threshold threshold_ unfold upsample upsample_bilinear upsample_nearest
""")

# Exist as Tensor.X only; the last five read dicts and tuples.
METHODS = _words("""
    bfloat16 bool byte char contiguous copy_ cpu cuda dim double element_size expand expand_as fill_ fill_diagonal_ float get_device
    half int is_contiguous is_signed item long masked_fill_ ndimension nelement new_empty new_full new_ones new_tensor new_zeros repeat
    requires_grad_ reshape_as short size storage_offset stride sum_to_size to tolist type type_as unfold uniform_ normal_ exponential_
    random_ view view_as zero_ to_dense hardshrink index keys values items get copy count
""")

# Exist as torch.ops.aten.X only, besides all of TENSOR, TORCH, FUNCTIONAL and METHODS.
ATEN = _words("""
    __and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__
    _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_tensor_metadata _conj _convolution _local_scalar_dense _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _reshape_alias _safe_softmax
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention _softmax _to_copy _unsafe_index _unsafe_view
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa addmm_ alias col2im contiguous convolution copy empty_permuted expand expand_as
    feature_dropout grid_sampler_2d grid_sampler_3d im2col index lift_fresh lift_fresh_copy max_pool2d_with_indices
    max_pool3d_with_indices native_dropout new_empty new_full new_ones new_zeros reflection_pad1d reflection_pad2d reflection_pad3d
    repeat replication_pad1d replication_pad2d replication_pad3d slice sym_numel sym_size sym_stride to type_as unfold
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d view view_as
""")

# Exist as torch.ops.mkldnn.X.
MKLDNN = _words("""
    _convolution_pointwise _convolution_transpose_pointwise _linear_pointwise
""")

OPERATOR = _words("""
    abs add and_ concat contains eq floordiv ge getitem gt iadd iand ifloordiv ilshift imatmul imod imul index inv invert ior ipow
    irshift is_ is_not isub itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift setitem sub truediv truth xor
""")

MATH = _words("""
    ceil cos exp fabs floor fmod gcd hypot isfinite isinf isnan isqrt log log10 log1p log2 pow prod remainder sin sqrt tan tanh trunc
""")

BUILTINS = _words("""
    abs all any bool complex dict divmod float getattr int len list max min pow range round slice str sum tuple
""")

NAMESPACES = {
    "torch.special": _words("""
    digamma entr erf erfc erfinv exp2 expit expm1 gammaln log1p log_ndtr log_softmax logit logsumexp ndtr round sinc softmax xlog1py
    xlogy
    """),
    "torch.linalg": _words("""
    cholesky cross det diagonal eigh eigvalsh inv matmul matrix_norm matrix_power multi_dot norm pinv qr slogdet solve svd svdvals
    vander vecdot vector_norm
    """),
    "torch.fft": _words("""
    fft fft2 fftfreq fftn fftshift hfft ifft ifft2 ifftn ifftshift ihfft irfft irfft2 irfftn rfft rfft2 rfftfreq rfftn
    """),
}

# What builtins.getattr may read.
ATTRIBUTES = _words("""
    H T device dtype imag is_cuda itemsize layout mH mT nbytes ndim real requires_grad shape start step stop
""")
