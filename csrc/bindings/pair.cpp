// Contrastive losses on CPU tensors: check -> fill params -> launch. Arguments as the ops of fastfuse/ops/pair.py.
#include "fastfuse/pair.h"

#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/features.h"

namespace fastfuse {
namespace {

namespace py = pybind11;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

float scalar_of(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.numel() == 1, name, ": expected one element, got ", t.sizes());
  return float(t.item<double>());
}

// Labels as int32: the kernels compare one per lane. Values that do not fit are replaced by their rank.
struct Labels {
  Tensor rows, cols;

  Labels(const OptionalTensor& row_labels, const OptionalTensor& col_labels, int64_t n, int64_t m, const char* name) {
    if (!row_labels) return;
    const Tensor& own = *row_labels;
    const Tensor& other = col_labels ? *col_labels : own;
    check_shape(own, {n}, name);
    check_shape(other, {m}, name);
    check_dtype(own, at::kLong, name);
    check_dtype(other, at::kLong, name);
    if (fit(own) && fit(other)) {
      rows = own.to(at::kInt).contiguous();
      cols = col_labels ? other.to(at::kInt).contiguous() : rows;
      return;
    }
    const Tensor ranks = std::get<1>(at::_unique(at::cat({own, other}), true, true)).to(at::kInt);
    rows = ranks.narrow(0, 0, n);
    cols = ranks.narrow(0, n, m);
  }
  static bool fit(const Tensor& t) {
    if (t.numel() == 0) return true;
    const auto [low, high] = at::aminmax(t);
    return low.item<int64_t>() > INT32_MIN && high.item<int64_t>() <= INT32_MAX;  // the least one marks padding
  }
  const int32_t* row_data() const { return rows.defined() ? rows.const_data_ptr<int32_t>() : nullptr; }
  const int32_t* col_data() const { return cols.defined() ? cols.const_data_ptr<int32_t>() : nullptr; }
};

// What the three ops have in common; owns what the params point to.
struct Pairs {
  Tensor a, b;
  Labels keys, skips;
  PairProblem problem;

  Pairs(const Tensor& a_in, const OptionalTensor& b_in, const Tensor& scale, const OptionalTensor& row_key,
        const OptionalTensor& col_key, const OptionalTensor& row_skip, const OptionalTensor& col_skip,
        bool skip_positives, bool normalize)
      : a(with_contiguous_rows(a_in)),
        b(b_in ? with_contiguous_rows(*b_in) : a),
        keys(row_key, col_key, a.size(0), b.size(0), "row_key, col_key"),
        skips(row_skip, col_skip, a.size(0), b.size(0), "row_skip, col_skip") {
    TORCH_CHECK_VALUE(a.size(1) == b.size(1), "b: expected (M, D) with the D of a ", a.sizes(), ", got ", b.sizes());
    check_dtype(b, a.scalar_type(), "b");
    problem.a = features_of(a, "a");
    problem.b = features_of(b, "b");
    problem.labels = {keys.row_data(), keys.col_data(), skips.row_data(), skips.col_data(), skip_positives};
    problem.scale = scalar_of(scale, "scale");
    problem.normalize = normalize;
    problem.symmetric = !b_in;
  }
  bool empty() const { return a.size(0) == 0 || b.size(0) == 0; }
};

PairStatistics statistics_of(const Tensor& values, const Tensor& count, int64_t n, const char* name) {
  check_shape(values, {4, n}, name);
  check_shape(count, {n}, name);
  check_dtype(values, at::kFloat, name);
  check_dtype(count, at::kInt, name);
  TORCH_CHECK_VALUE(values.is_contiguous() && count.is_contiguous(), name, ": expected contiguous tensors");
  float* data = values.data_ptr<float>();
  return {data, data + n, data + 2 * n, data + 3 * n, count.data_ptr<int32_t>()};
}

// Statistics, with kKeep and what there is for the backward, perhaps nothing.
template <bool kKeep>
auto softmax_fwd(const Tensor& a, const OptionalTensor& b, const Tensor& scale, const Tensor& row_key,
                 const OptionalTensor& col_key, const OptionalTensor& row_skip, const OptionalTensor& col_skip,
                 bool skip_positives, bool normalize, const std::string& mode, bool uniform) {
  const Pairs pairs(a, b, scale, row_key, col_key, row_skip, col_skip, skip_positives, normalize);
  const int64_t n = pairs.a.size(0), m = mode == "both" ? pairs.b.size(0) : 0;
  const auto floats = pairs.a.options().dtype(at::kFloat), ints = pairs.a.options().dtype(at::kInt);
  const Tensor rows = at::zeros({4, n}, floats), row_count = at::zeros({n}, ints);
  const Tensor cols = at::zeros({4, m}, floats), col_count = at::zeros({m}, ints);
  // Label smoothing's gradient is a difference everywhere: nothing could be kept of it.
  const int64_t bytes = kKeep && !uniform && !pairs.empty() ? cpu::pair_kept_bytes(pairs.problem) : 0;
  const Tensor kept = new_tensor({bytes}, at::kByte);
  if (!pairs.empty()) {
    PairSoftmaxFwd p{
        pairs.problem, statistics_of(rows, row_count, n, "rows"), {}, uniform, bytes ? kept.data_ptr() : nullptr};
    if (m) p.cols = statistics_of(cols, col_count, m, "cols");
    py::gil_scoped_release release;
    cpu::pair_softmax_fwd(p, torch_threads());
  }
  if constexpr (kKeep) {
    return std::tuple{rows, row_count, cols, col_count, kept};
  } else {
    return std::tuple{rows, row_count, cols, col_count};
  }
}

std::tuple<Tensor, Tensor, Tensor> softmax_bwd(const Tensor& unit, const Tensor& a, const OptionalTensor& b,
                                               const Tensor& scale, const Tensor& row_key,
                                               const OptionalTensor& col_key, const OptionalTensor& row_skip,
                                               const OptionalTensor& col_skip, bool skip_positives, bool normalize,
                                               const std::string& mode, double label_smoothing, const Tensor& rows,
                                               const Tensor& row_count, const Tensor& cols, const Tensor& col_count,
                                               const std::vector<bool>& needs, const OptionalTensor& kept) {
  const Pairs pairs(a, b, scale, row_key, col_key, row_skip, col_skip, skip_positives, normalize);
  TORCH_CHECK_VALUE(needs.size() == 3, "needs: expected 3 flags, got ", needs.size());
  const auto grad_of = [&](const Tensor& t, bool wanted) {
    if (!wanted) return at::empty({0}, t.options());
    return pairs.empty() ? at::zeros(t.sizes(), t.options()) : new_tensor(t.sizes(), t.options());
  };
  const Tensor da = grad_of(pairs.a, needs[0]), db = grad_of(pairs.b, needs[1] && b);
  Tensor dscale = at::zeros(needs[2] ? at::IntArrayRef{} : at::IntArrayRef{0}, scale.options());
  if (!pairs.empty()) {
    void* products = nullptr;
    if (kept && kept->numel()) {
      check_shape(*kept, {cpu::pair_kept_bytes(pairs.problem)}, "kept");
      check_dtype(*kept, at::kByte, "kept");
      products = kept->data_ptr();
    }
    double sum = 0;
    PairSoftmaxBwd p{pairs.problem,
                     statistics_of(rows, row_count, pairs.a.size(0), "rows"),
                     {},
                     products,
                     float(label_smoothing),
                     unit.item<double>(),
                     needs[0] ? da.data_ptr() : nullptr,
                     needs[1] && b ? db.data_ptr() : nullptr,
                     &sum};
    if (mode == "both") p.cols = statistics_of(cols, col_count, pairs.b.size(0), "cols");
    {
      py::gil_scoped_release release;
      cpu::pair_softmax_bwd(p, torch_threads());
    }
    if (needs[2]) dscale.fill_(sum);
  }
  return {da, db, dscale};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sigmoid(const Tensor& a, const Tensor& b, const Tensor& scale,
                                                           const Tensor& bias, const Tensor& row_key,
                                                           const OptionalTensor& col_key,
                                                           const OptionalTensor& row_skip,
                                                           const OptionalTensor& col_skip, bool skip_positives,
                                                           bool normalize, const std::vector<bool>& needs) {
  const Pairs pairs(a, b, scale, row_key, col_key, row_skip, col_skip, skip_positives, normalize);
  TORCH_CHECK_VALUE(needs.size() == 4, "needs: expected 4 flags, got ", needs.size());
  const auto floats = pairs.a.options().dtype(at::kFloat);
  const auto grad_of = [&](at::IntArrayRef shape, bool wanted) {
    if (!wanted) return at::empty({0}, floats);
    return pairs.empty() ? at::zeros(shape, floats) : new_tensor(shape, floats);
  };
  const Tensor loss = at::zeros({}, floats), da = grad_of(pairs.a.sizes(), needs[0]);
  const Tensor db = grad_of(pairs.b.sizes(), needs[1]), dscale = grad_of({}, needs[2]), dbias = grad_of({}, needs[3]);
  if (!pairs.empty()) {
    double loss_sum = 0, dscale_sum = 0, dbias_sum = 0;
    const PairSigmoid p{pairs.problem,
                        scalar_of(bias, "bias"),
                        &loss_sum,
                        needs[0] ? da.data_ptr<float>() : nullptr,
                        needs[1] ? db.data_ptr<float>() : nullptr,
                        &dscale_sum,
                        &dbias_sum};
    {
      py::gil_scoped_release release;
      cpu::pair_sigmoid(p, torch_threads());
    }
    loss.fill_(loss_sum);
    if (needs[2]) dscale.fill_(dscale_sum);
    if (needs[3]) dbias.fill_(dbias_sum);
  }
  return {loss, da, db, dscale, dbias};
}

// (factor x).to(dtype)
Tensor scaled(const Tensor& x, const Tensor& factor, at::ScalarType dtype) {
  check_dtype(x, at::kFloat, "x");
  TORCH_CHECK_VALUE(x.is_cpu() && x.is_contiguous(), "x: expected a contiguous CPU tensor");
  const Tensor result = new_tensor(x.sizes(), x.options().dtype(dtype));
  const Scaled p{x.const_data_ptr<float>(), x.numel(), scalar_of(factor, "factor"), result.data_ptr(),
                 dtype_of(result, "dtype")};
  py::gil_scoped_release release;
  cpu::scaled(p, torch_threads());
  return result;
}

}  // namespace

void register_pair(py::module& m) {
  m.def("pair_softmax_fwd", &softmax_fwd<false>);
  m.def("pair_softmax_fwd_kept", &softmax_fwd<true>);
  m.def("pair_softmax_bwd", &softmax_bwd);
  m.def("pair_sigmoid", &sigmoid);
  m.def("scaled", &scaled);
}

}  // namespace fastfuse
