// Attention on CPU tensors: check -> fill params -> launch. Shapes and letters as in fastfuse/attention.h.
#include "fastfuse/attention.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/attention.h"
#include "bindings/runtime.h"

namespace fastfuse {
namespace {

namespace py = pybind11;
using at::Tensor;

cpu::Rows rows_of(const Tensor& t) { return {t.const_data_ptr(), {t.stride(0), t.stride(1), t.stride(2)}}; }

// Kernels read rows: the last dimension has to be contiguous (or a single number).
void check_rows(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.is_cpu(), name, ": expected a CPU tensor, got ", t.device());
  TORCH_CHECK_VALUE(t.dim() == 4, name, ": expected 4 dimensions, got shape ", t.sizes());
  TORCH_CHECK_VALUE(t.numel() > 0, name, ": empty tensor of shape ", t.sizes());
  TORCH_CHECK_VALUE(t.stride(3) == 1 || t.size(3) == 1, name, ": last dimension has stride ", t.stride(3),
                    ", expected 1");
}

const float* per_head(const OptionalTensor& t, int64_t heads, const char* name) {
  if (!t) return nullptr;
  check_shape(*t, {heads}, name);
  check_dtype(*t, at::kFloat, name);
  TORCH_CHECK_VALUE(t->is_contiguous(), name, ": expected a contiguous tensor");
  return t->const_data_ptr<float>();
}

struct Masks {
  const OptionalTensor &lo, &hi, &bias;
};

void fill_masks(cpu::AttentionProblem& p, const Masks& masks) {
  TORCH_CHECK_VALUE(bool(masks.lo) == bool(masks.hi), "span: lo and hi come together");
  if (masks.lo) {
    const Tensor &lo = *masks.lo, &hi = *masks.hi;
    TORCH_CHECK_VALUE(lo.is_cpu() && hi.is_cpu(), "span: expected CPU tensors");
    check_dtype(lo, at::kInt, "lo");
    check_dtype(hi, at::kInt, "hi");
    TORCH_CHECK_VALUE(lo.dim() == 2 && lo.sizes() == hi.sizes() && (lo.size(0) == 1 || lo.size(0) == p.batch) &&
                          (lo.size(1) == 1 || lo.size(1) == p.seq_q),
                      "span: shapes ", lo.sizes(), " and ", hi.sizes(), ", expected (", p.batch, " or 1, ", p.seq_q,
                      " or 1)");
    TORCH_CHECK_VALUE(lo.is_contiguous() && hi.is_contiguous(), "span: expected contiguous tensors");
    p.lo = lo.const_data_ptr<int32_t>();
    p.hi = hi.const_data_ptr<int32_t>();
    p.span_stride[0] = lo.size(0) == 1 ? 0 : lo.size(1);
    p.span_stride[1] = lo.size(1) == 1 ? 0 : 1;
  }
  if (masks.bias) {
    const Tensor& bias = *masks.bias;
    const int64_t full[4] = {p.batch, p.heads, p.seq_q, p.seq_k};
    TORCH_CHECK_VALUE(bias.is_cpu() && bias.dim() == 4, "bias: expected a CPU tensor of 4 dimensions, got shape ",
                      bias.sizes());
    p.bias = bias.const_data_ptr();
    p.bias_dtype = dtype_of(bias, "bias");
    for (int i = 0; i < 4; i++) {
      TORCH_CHECK_VALUE(bias.size(i) == 1 || bias.size(i) == full[i], "bias: shape ", bias.sizes(),
                        " does not broadcast to ", at::IntArrayRef(full));
      p.bias_stride[i] = bias.size(i) == 1 ? 0 : bias.stride(i);
    }
  }
}

void fill_queries_keys(cpu::AttentionProblem& p, const Tensor& q, const Tensor& k, double scale, double softcap) {
  check_rows(q, "q");
  check_rows(k, "k");
  check_dtype(k, q.scalar_type(), "k");
  p.dtype = dtype_of(q, "q");
  TORCH_CHECK_TYPE(p.dtype != DType::kBool, "q: dtype bool");
  p.batch = q.size(0);
  p.heads = q.size(1);
  p.seq_q = q.size(2);
  p.dim = q.size(3);
  p.kv_heads = k.size(1);
  p.seq_k = k.size(2);
  check_shape(k, {p.batch, p.kv_heads, p.seq_k, p.dim}, "k");
  TORCH_CHECK_VALUE(p.heads % p.kv_heads == 0, "k: ", p.kv_heads, " heads do not divide the ", p.heads, " of q");
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(p.seq_q * p.heads <= limit && p.seq_k <= limit && p.batch * p.heads <= limit,
                    "q: sizes beyond 2^31");
  p.q = rows_of(q);
  p.k = rows_of(k);
  p.scale = float(scale);
  p.softcap = float(softcap);
  p.pool = torch_threads();
}

void fill_values(cpu::AttentionProblem& p, const Tensor& q, const Tensor& v, double dropout_p,
                 const OptionalTensor& seed) {
  check_rows(v, "v");
  check_dtype(v, q.scalar_type(), "v");
  p.dim_v = v.size(3);
  check_shape(v, {p.batch, p.kv_heads, p.seq_k, p.dim_v}, "v");
  p.v = rows_of(v);
  TORCH_CHECK_VALUE(dropout_p >= 0 && dropout_p < 1, "dropout_p: expected 0 <= p < 1, got ", dropout_p);
  p.dropout_p = dropout_p;
  if (dropout_p > 0) {
    TORCH_CHECK_VALUE(seed && seed->numel() == 1 && seed->is_cpu(), "seed: dropout needs one int64 number on the CPU");
    check_dtype(*seed, at::kLong, "seed");
    p.seed = uint64_t(*seed->const_data_ptr<int64_t>());
  }
}

const float* lse_of(const cpu::AttentionProblem& p, const Tensor& lse_pair) {
  check_shape(lse_pair, {2, p.batch, p.heads, p.seq_q}, "lse_pair");
  check_dtype(lse_pair, at::kFloat, "lse_pair");
  TORCH_CHECK_VALUE(lse_pair.is_contiguous(), "lse_pair: expected a contiguous tensor");
  return lse_pair.const_data_ptr<float>();
}

// attention_fwd, with kKeep attention_fwd_kept.
template <bool kKeep>
auto forward(const Tensor& q_, const Tensor& k_, const Tensor& v_, const OptionalTensor& lo, const OptionalTensor& hi,
             const OptionalTensor& bias, const OptionalTensor& sink, const OptionalTensor& gate, double scale,
             double softcap, double dropout_p, const OptionalTensor& seed) {
  const c10::NoGradGuard no_grad;
  check_rows(q_, "q"), check_rows(k_, "k"), check_rows(v_, "v");
  const Tensor q = with_contiguous_last_dim(q_), k = with_contiguous_last_dim(k_), v = with_contiguous_last_dim(v_);
  cpu::AttentionForward p{};
  fill_queries_keys(p, q, k, scale, softcap);
  fill_values(p, q, v, dropout_p, seed);
  fill_masks(p, {lo, hi, bias});
  p.sink = per_head(sink, p.heads, "sink");
  p.gate = per_head(gate, p.heads, "gate");
  Tensor out = new_tensor({p.batch, p.heads, p.seq_q, p.dim_v}, q.options());
  Tensor lse_pair = new_tensor({2, p.batch, p.heads, p.seq_q}, q.options().dtype(at::kFloat));
  p.out = out.data_ptr();
  p.lse = lse_pair.data_ptr<float>();
  if constexpr (kKeep) {
    Tensor kept = new_tensor({cpu::attention_kept_bytes(p)}, at::kByte);
    if (kept.numel()) p.kept = kept.data_ptr();
    cpu::attention_fwd(p);
    return std::tuple{out, lse_pair, kept};
  } else {
    cpu::attention_fwd(p);
    return std::tuple{out, lse_pair};
  }
}

}  // namespace

std::tuple<Tensor, Tensor> attention_fwd(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& lo,
                                         const OptionalTensor& hi, const OptionalTensor& bias,
                                         const OptionalTensor& sink, const OptionalTensor& gate, double scale,
                                         double softcap, double dropout_p, const OptionalTensor& seed) {
  return forward<false>(q, k, v, lo, hi, bias, sink, gate, scale, softcap, dropout_p, seed);
}

std::tuple<Tensor, Tensor, Tensor> attention_fwd_kept(const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const OptionalTensor& lo, const OptionalTensor& hi,
                                                      const OptionalTensor& bias, const OptionalTensor& sink,
                                                      const OptionalTensor& gate, double scale, double softcap,
                                                      double dropout_p, const OptionalTensor& seed) {
  return forward<true>(q, k, v, lo, hi, bias, sink, gate, scale, softcap, dropout_p, seed);
}

std::vector<Tensor> attention_bwd(const Tensor& dout_, const OptionalTensor& dlse_, const Tensor& q_, const Tensor& k_,
                                  const Tensor& v_, const OptionalTensor& lo, const OptionalTensor& hi,
                                  const OptionalTensor& bias, const OptionalTensor& sink, const OptionalTensor& gate,
                                  const Tensor& out_, const Tensor& lse_pair, double scale, double softcap,
                                  double dropout_p, const OptionalTensor& seed, const std::vector<bool>& needs,
                                  const OptionalTensor& kept) {
  const c10::NoGradGuard no_grad;
  TORCH_CHECK_VALUE(needs.size() == 6, "needs: expected 6 flags, got ", needs.size());
  check_rows(q_, "q"), check_rows(k_, "k"), check_rows(v_, "v"), check_rows(dout_, "dout"), check_rows(out_, "out");
  const Tensor q = with_contiguous_last_dim(q_), k = with_contiguous_last_dim(k_), v = with_contiguous_last_dim(v_);
  const Tensor dout = with_contiguous_last_dim(dout_), out = with_contiguous_last_dim(out_);
  cpu::AttentionBackward p{};
  fill_queries_keys(p, q, k, scale, softcap);
  fill_values(p, q, v, dropout_p, seed);
  fill_masks(p, {lo, hi, bias});
  p.sink = per_head(sink, p.heads, "sink");
  p.gate = per_head(gate, p.heads, "gate");
  for (const auto& [t, name] : {std::pair{&dout, "dout"}, std::pair{&out, "out"}}) {
    check_shape(*t, {p.batch, p.heads, p.seq_q, p.dim_v}, name);
    check_dtype(*t, q.scalar_type(), name);
  }
  p.dout = rows_of(dout);
  p.out = rows_of(out);
  p.lse = lse_of(p, lse_pair);
  Tensor dlse;
  if (dlse_) {
    check_shape(*dlse_, {p.batch, p.heads, p.seq_q}, "dlse");
    check_dtype(*dlse_, at::kFloat, "dlse");
    dlse = dlse_->contiguous();
    p.dlse = dlse.const_data_ptr<float>();
  }

  const Tensor none = new_tensor({0}, q.options());
  const auto gradient = [&](bool needed, const Tensor& like, void*& data) {
    if (!needed) return none;
    Tensor t = new_tensor(like.sizes(), q.options());
    data = t.data_ptr();
    return t;
  };
  Tensor dq = gradient(needs[0], q, p.dq), dk = gradient(needs[1], k, p.dk), dv = gradient(needs[2], v, p.dv);
  Tensor dbias = none, dsink = none, dgate = none;
  if (needs[3] && bias && bias->scalar_type() != at::kBool) {
    dbias = new_tensor(bias->sizes(), q.options().dtype(at::kFloat)).zero_();
    p.dbias = dbias.data_ptr<float>();
    for (int i = 0; i < 4; i++) p.dbias_stride[i] = dbias.size(i) == 1 ? 0 : dbias.stride(i);
  }
  const auto head_gradient = [&](bool needed, const OptionalTensor& like, float*& data) {
    if (!needed || !like) return none;
    Tensor t = new_tensor({p.heads}, like->options());
    data = t.data_ptr<float>();
    return t;
  };
  dsink = head_gradient(needs[4], sink, p.dsink);
  dgate = head_gradient(needs[5], gate, p.dgate);
  if (kept) {
    check_dtype(*kept, at::kByte, "kept");
    TORCH_CHECK_VALUE(kept->is_cpu() && kept->is_contiguous(), "kept: expected a contiguous CPU tensor");
    if (kept->numel() && kept->numel() == cpu::attention_kept_bytes(p)) p.kept = kept->data_ptr();
  }
  cpu::attention_bwd(p);
  if (p.dbias) dbias = dbias.to(bias->scalar_type());
  return {dq, dk, dv, dbias, dsink, dgate};
}

namespace {

Tensor attention_map(const Tensor& q_, const Tensor& k_, const OptionalTensor& lo, const OptionalTensor& hi,
                     const OptionalTensor& bias, const Tensor& lse_pair, double scale, double softcap,
                     const std::string& mode) {
  const c10::NoGradGuard no_grad;
  check_rows(q_, "q"), check_rows(k_, "k");
  const Tensor q = with_contiguous_last_dim(q_), k = with_contiguous_last_dim(k_);
  cpu::AttentionMap p{};
  fill_queries_keys(p, q, k, scale, softcap);
  fill_masks(p, {lo, hi, bias});
  p.lse = lse_of(p, lse_pair);
  TORCH_CHECK_VALUE(mode == "mean" || mode == "full" || mode == "keys", "mode: expected mean, full or keys, got ",
                    mode);
  p.mode = mode == "mean" ? cpu::MapMode::kMean : mode == "full" ? cpu::MapMode::kFull : cpu::MapMode::kKeys;
  std::vector<int64_t> shape{p.batch};
  if (p.mode == cpu::MapMode::kFull) shape.push_back(p.heads);
  if (p.mode != cpu::MapMode::kKeys) shape.push_back(p.seq_q);
  shape.push_back(p.seq_k);
  Tensor map = new_tensor(shape, q.options().dtype(at::kFloat));
  p.map = map.data_ptr<float>();
  cpu::attention_map(p);
  return map;
}

}  // namespace

void register_attention(py::module& m) {
  const py::call_guard<py::gil_scoped_release> unlocked;
  m.def("attention_fwd", &attention_fwd, unlocked);
  m.def("attention_fwd_kept", &attention_fwd_kept, unlocked);
  m.def("attention_bwd", &attention_bwd, unlocked);
  m.def("attention_map", &attention_map, unlocked);
}

}  // namespace fastfuse
