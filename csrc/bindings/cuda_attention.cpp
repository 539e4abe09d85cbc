// Attention on Hopper: check -> fill params -> launch. Shapes and letters as in fastfuse/attention.h.
#include "fastfuse/cuda_attention.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/cuda_runtime.h"
#include "fastfuse/cuda_attention_bwd.h"
#include "fastfuse/cuda_attention_decode.h"
#include "fastfuse/cuda_attention_map.h"

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
  p.out = out.data_ptr();
  p.lse = lse_pair.data_ptr<float>();
  int splits = 1;
  if (int64_t(p.heads / p.kv_heads) * p.seq_q <= kDecodeRows)
    check(attention_decode_splits(p, &splits), "attention_fwd");
  if (splits > 1) {
    Tensor partial = at::empty({splits, p.batch, p.heads, p.seq_q, p.dim_v + 2}, q.options().dtype(at::kFloat));
    check(attention_decode(p, splits, partial.data_ptr<float>(), current_stream()), "attention_fwd");
    return {out, lse_pair};
  }
  Tensor schedule = at::empty({attention_fwd_schedule_size(p)}, q.options().dtype(at::kInt));
  p.schedule = schedule.numel() ? schedule.data_ptr<int32_t>() : nullptr;
  check(attention_fwd(p, current_stream()), "attention_fwd");
  return {out, lse_pair};
}

const float* float_data(const Tensor& t, at::IntArrayRef shape, const char* name) {
  check_tensor(t, shape, at::kFloat, name);
  TORCH_CHECK_VALUE(t.is_contiguous(), name, ": expected a contiguous tensor");
  return t.const_data_ptr<float>();
}

// dbias, and where the bias is broadcast the scores' gradient that it is summed from.
std::tuple<Tensor, Tensor> bias_gradient(AttentionBackward& p, const Tensor& bias) {
  const int64_t full[4] = {p.batch, p.heads, p.seq_q, p.seq_k};
  const bool is_full = bias.sizes() == at::IntArrayRef(full);
  p.ds_pitch = is_full ? p.seq_k : (p.seq_k + 7) / 8 * 8;
  p.ds_dtype = is_full ? p.bias_dtype : DType::kFloat32;
  Tensor ds =
      at::empty({p.batch, p.heads, p.seq_q, p.ds_pitch}, is_full ? bias.options() : bias.options().dtype(at::kFloat));
  if (p.lo) ds.zero_();
  p.ds = ds.data_ptr();
  if (is_full) return {ds, ds};
  Tensor dbias = at::empty(bias.sizes(), bias.options());
  p.dbias = dbias.data_ptr();
  for (int i = 0; i < 4; i++) p.bias_size[i] = int(bias.size(i));
  return {dbias, ds};
}

std::vector<Tensor> attention_bwd_op(const Tensor& dout_, const OptionalTensor& dlse_, const Tensor& q_,
                                     const Tensor& k_, const Tensor& v_, const OptionalTensor& lo,
                                     const OptionalTensor& hi, const OptionalTensor& bias, const OptionalTensor& sink,
                                     const OptionalTensor& gate, const Tensor& out_, const Tensor& lse_pair,
                                     double scale, double softcap, double dropout_p, const OptionalTensor& seed,
                                     const std::vector<bool>& needs) {
  const c10::NoGradGuard no_grad;
  const DeviceGuard device(q_);
  TORCH_CHECK_VALUE(needs.size() == 6, "needs: expected 6 flags, got ", needs.size());
  check_four_dims(q_, "q"), check_four_dims(k_, "k"), check_four_dims(v_, "v");
  check_four_dims(dout_, "dout"), check_four_dims(out_, "out");
  const Tensor q = with_aligned_rows(q_), k = with_aligned_rows(k_), v = with_aligned_rows(v_);
  const Tensor dout = with_aligned_rows(dout_), out = with_aligned_rows(out_);
  AttentionBackward p{};
  fill_queries_keys(p, q, k, scale, softcap);
  fill_values(p, v, q.scalar_type(), dropout_p, seed);
  fill_masks(p, {lo, hi, bias});
  p.sink = per_head(sink, p.heads, "sink");
  p.gate = per_head(gate, p.heads, "gate");
  check_tensor(dout, {p.batch, p.heads, p.seq_q, p.dim_v}, q.scalar_type(), "dout");
  check_tensor(out, dout.sizes(), q.scalar_type(), "out");
  p.dout = rows_of(dout);
  p.out = rows_of(out);
  p.lse = float_data(lse_pair, {2, p.batch, p.heads, p.seq_q}, "lse_pair");
  const Tensor dlse = dlse_ ? dlse_->contiguous() : Tensor();
  if (dlse_) p.dlse = float_data(dlse, {p.batch, p.heads, p.seq_q}, "dlse");

  const Tensor none = at::empty({0}, q.options());
  const auto gradient = [&](bool needed, const Tensor& like, void*& data) {
    if (!needed) return none;
    Tensor t = at::empty(like.sizes(), like.options());
    data = t.data_ptr();
    return t;
  };
  const auto head_gradient = [&](bool needed, const OptionalTensor& like, float*& data) {
    if (!needed || !like) return none;
    Tensor t = at::empty(like->sizes(), like->options());
    data = t.data_ptr<float>();
    return t;
  };
  Tensor dq = gradient(needs[0], q, p.dq), dk = gradient(needs[1], k, p.dk), dv = gradient(needs[2], v, p.dv);
  Tensor dbias = none, ds;
  if (needs[3] && bias && p.bias_dtype != DType::kBool) std::tie(dbias, ds) = bias_gradient(p, *bias);
  Tensor dsink = head_gradient(needs[4], sink, p.dsink), dgate = head_gradient(needs[5], gate, p.dgate);
  Tensor rows = at::empty({attention_bwd_rows_size(p)}, q.options().dtype(at::kFloat));
  Tensor spans = at::empty({attention_bwd_spans_size(p)}, q.options().dtype(at::kInt));
  int64_t sums_size = 0;
  check(attention_bwd_sums_size(p, &sums_size), "attention_bwd");
  Tensor dq_sums = at::empty({sums_size}, q.options().dtype(at::kFloat));
  p.rows = rows.data_ptr<float>();
  p.dq_sums = sums_size ? dq_sums.data_ptr<float>() : nullptr;
  p.spans = spans.numel() ? spans.data_ptr<int32_t>() : nullptr;
  check(attention_bwd(p, current_stream()), "attention_bwd");
  return {dq, dk, dv, dbias, dsink, dgate};
}

Tensor attention_map_op(const Tensor& q_, const Tensor& k_, const OptionalTensor& lo, const OptionalTensor& hi,
                        const OptionalTensor& bias, const Tensor& lse_pair, double scale, double softcap,
                        const std::string& mode) {
  const c10::NoGradGuard no_grad;
  const DeviceGuard device(q_);
  check_four_dims(q_, "q"), check_four_dims(k_, "k");
  const Tensor q = with_aligned_rows(q_), k = with_aligned_rows(k_);
  AttentionMap p{};
  fill_queries_keys(p, q, k, scale, softcap);
  fill_masks(p, {lo, hi, bias});
  p.lse = float_data(lse_pair, {2, p.batch, p.heads, p.seq_q}, "lse_pair");
  TORCH_CHECK_VALUE(mode == "mean" || mode == "full" || mode == "keys", "mode: expected mean, full or keys, got ",
                    mode);
  p.mode = mode == "mean" ? MapMode::kMean : mode == "full" ? MapMode::kFull : MapMode::kKeys;
  std::vector<int64_t> shape{p.batch};
  if (p.mode == MapMode::kFull) shape.push_back(p.heads);
  if (p.mode != MapMode::kKeys) shape.push_back(p.seq_q);
  shape.push_back(p.seq_k);
  Tensor map = at::empty(shape, q.options().dtype(at::kFloat));
  p.map = map.data_ptr<float>();
  check(attention_map(p, current_stream()), "attention_map");
  return map;
}

}  // namespace

void register_attention(py::module& m) {
  m.def("attention_fwd", &attention_fwd_op, py::call_guard<py::gil_scoped_release>());
  m.def("attention_bwd", &attention_bwd_op, py::call_guard<py::gil_scoped_release>());
  m.def("attention_map", &attention_map_op, py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastfuse::cuda
