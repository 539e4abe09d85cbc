// Attention on Hopper: check -> fill params -> launch. Shapes and letters as in fastfuse/attention.h.
#include "fastfuse/cuda_attention.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>
#include <optional>
#include <tuple>

#include "bindings/cuda_runtime.h"

namespace fastfuse::cuda {
namespace {

namespace py = pybind11;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBool:
      return DType::kBool;
    default:
      TORCH_CHECK_TYPE(false, name, ": dtype ", t.scalar_type(), " is not served by the cuda backend");
  }
}

void check_tensor(const Tensor& t, at::IntArrayRef shape, at::ScalarType dtype, const char* name) {
  TORCH_CHECK_VALUE(t.device().type() == kDevice, name, ": expected a ", kDevice, " tensor, got ", t.device());
  TORCH_CHECK_VALUE(t.sizes() == shape, name, ": shape ", t.sizes(), ", expected ", shape);
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, name, ": dtype ", t.scalar_type(), ", expected ", dtype);
}

// A view or a copy whose rows are contiguous, start at multiples of 16 bytes and lie at multiples of 16 bytes: what TMA
// describes. A dimension of size 1 has whatever stride.
Tensor with_aligned_rows(const Tensor& t) {
  bool aligned = t.stride(3) == 1 && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
  for (int i = 0; i < 3; i++) aligned &= t.size(i) == 1 || t.stride(i) % 8 == 0;
  return aligned ? t : t.clone(at::MemoryFormat::Contiguous);
}

Rows rows_of(const Tensor& t) {
  Rows rows{t.const_data_ptr(), {}};
  for (int i = 0; i < 3; i++) rows.stride[i] = t.size(i) == 1 ? t.size(3) : t.stride(i);
  return rows;
}

struct Masks {
  const OptionalTensor &lo, &hi, &bias;
};

void fill_masks(AttentionProblem& p, const Masks& masks) {
  TORCH_CHECK_VALUE(bool(masks.lo) == bool(masks.hi), "span: lo and hi come together");
  if (masks.lo) {
    const Tensor &lo = *masks.lo, &hi = *masks.hi;
    TORCH_CHECK_VALUE(
        lo.dim() == 2 && (lo.size(0) == 1 || lo.size(0) == p.batch) && (lo.size(1) == 1 || lo.size(1) == p.seq_q),
        "span: shape ", lo.sizes(), ", expected (", p.batch, " or 1, ", p.seq_q, " or 1)");
    check_tensor(lo, lo.sizes(), at::kInt, "lo");
    check_tensor(hi, lo.sizes(), at::kInt, "hi");
    TORCH_CHECK_VALUE(lo.is_contiguous() && hi.is_contiguous(), "span: expected contiguous tensors");
    p.lo = lo.const_data_ptr<int32_t>();
    p.hi = hi.const_data_ptr<int32_t>();
    p.span_stride[0] = lo.size(0) == 1 ? 0 : lo.size(1);
    p.span_stride[1] = lo.size(1) == 1 ? 0 : 1;
  }
  if (masks.bias) {
    const Tensor& bias = *masks.bias;
    const int64_t full[4] = {p.batch, p.heads, p.seq_q, p.seq_k};
    TORCH_CHECK_VALUE(bias.device().type() == kDevice && bias.dim() == 4, "bias: expected a ", kDevice,
                      " tensor of 4 dimensions, got shape ", bias.sizes());
    p.bias = bias.const_data_ptr();
    p.bias_dtype = dtype_of(bias, "bias");
    TORCH_CHECK_TYPE(p.bias_dtype == p.dtype || p.bias_dtype == DType::kFloat32 || p.bias_dtype == DType::kBool,
                     "bias: dtype ", bias.scalar_type(), ", expected q's, float32 or bool");
    for (int i = 0; i < 4; i++) {
      TORCH_CHECK_VALUE(bias.size(i) == 1 || bias.size(i) == full[i], "bias: shape ", bias.sizes(),
                        " does not broadcast to ", at::IntArrayRef(full));
      p.bias_stride[i] = bias.size(i) == 1 ? 0 : bias.stride(i);
    }
  }
}

void fill_queries_keys(AttentionProblem& p, const Tensor& q, const Tensor& k, double scale, double softcap) {
  constexpr int64_t limit = std::numeric_limits<int32_t>::max() / 2;
  TORCH_CHECK_VALUE(q.size(1) * q.size(2) <= limit && k.size(2) <= limit && q.size(0) * q.size(1) <= limit,
                    "q: sizes beyond 2^30");
  p.dtype = dtype_of(q, "q");
  TORCH_CHECK_TYPE(p.dtype == DType::kBFloat16 || p.dtype == DType::kFloat16, "q: dtype ", q.scalar_type(),
                   ", expected bfloat16 or float16");
  p.batch = int(q.size(0));
  p.heads = int(q.size(1));
  p.seq_q = int(q.size(2));
  p.dim = int(q.size(3));
  p.kv_heads = int(k.size(1));
  p.seq_k = int(k.size(2));
  check_tensor(q, q.sizes(), q.scalar_type(), "q");
  check_tensor(k, {p.batch, p.kv_heads, p.seq_k, p.dim}, q.scalar_type(), "k");
  TORCH_CHECK_VALUE(p.heads % p.kv_heads == 0, "k: ", p.kv_heads, " heads do not divide the ", p.heads, " of q");
  TORCH_CHECK_VALUE(p.dim % 8 == 0, "q: head size ", p.dim, ", expected a multiple of 8");
  p.q = rows_of(q);
  p.k = rows_of(k);
  p.scale = float(scale);
  p.softcap = float(softcap);
}

void fill_values(AttentionProblem& p, const Tensor& v, at::ScalarType dtype, double dropout_p,
                 const OptionalTensor& seed) {
  p.dim_v = int(v.size(3));
  check_tensor(v, {p.batch, p.kv_heads, p.seq_k, p.dim_v}, dtype, "v");
  TORCH_CHECK_VALUE(p.dim_v % 8 == 0, "v: head size ", p.dim_v, ", expected a multiple of 8");
  p.v = rows_of(v);
  TORCH_CHECK_VALUE(dropout_p >= 0 && dropout_p < 1, "dropout_p: expected 0 <= p < 1, got ", dropout_p);
  p.dropout_p = dropout_p;
  if (dropout_p > 0) {
    TORCH_CHECK_VALUE(seed && seed->numel() == 1, "seed: dropout needs one int64 number");
    check_tensor(*seed, seed->sizes(), at::kLong, "seed");
    p.seed = seed->const_data_ptr<int64_t>();
  }
}

const float* per_head(const OptionalTensor& t, int heads, const char* name) {
  if (!t) return nullptr;
  check_tensor(*t, {heads}, at::kFloat, name);
  TORCH_CHECK_VALUE(t->is_contiguous(), name, ": expected a contiguous tensor");
  return t->const_data_ptr<float>();
}

void check_four_dims(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.dim() == 4 && t.numel() > 0, name, ": expected 4 dimensions that are not empty, got shape ",
                    t.sizes());
}

std::tuple<Tensor, Tensor> attention_fwd_op(const Tensor& q_, const Tensor& k_, const Tensor& v_,
                                            const OptionalTensor& lo, const OptionalTensor& hi,
                                            const OptionalTensor& bias, const OptionalTensor& sink,
                                            const OptionalTensor& gate, double scale, double softcap, double dropout_p,
                                            const OptionalTensor& seed) {
  const c10::NoGradGuard no_grad;
  const DeviceGuard device(q_);
  check_four_dims(q_, "q"), check_four_dims(k_, "k"), check_four_dims(v_, "v");
  const Tensor q = with_aligned_rows(q_), k = with_aligned_rows(k_), v = with_aligned_rows(v_);
  AttentionForward p{};
  fill_queries_keys(p, q, k, scale, softcap);
  fill_values(p, v, q.scalar_type(), dropout_p, seed);
  fill_masks(p, {lo, hi, bias});
  p.sink = per_head(sink, p.heads, "sink");
  p.gate = per_head(gate, p.heads, "gate");
  Tensor out = at::empty({p.batch, p.heads, p.seq_q, p.dim_v}, q.options());
  Tensor lse_pair = at::empty({2, p.batch, p.heads, p.seq_q}, q.options().dtype(at::kFloat));
  Tensor schedule = at::empty({attention_fwd_schedule_size(p)}, q.options().dtype(at::kInt));
  p.out = out.data_ptr();
  p.lse = lse_pair.data_ptr<float>();
  p.schedule = schedule.numel() ? schedule.data_ptr<int32_t>() : nullptr;
  check(attention_fwd(p, current_stream()), "attention_fwd");
  return {out, lse_pair};
}

}  // namespace

void register_attention(py::module& m) {
  m.def("attention_fwd", &attention_fwd_op, py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastfuse::cuda
