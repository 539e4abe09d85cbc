// Contrastive losses on Hopper: check -> fill params -> launch. Arguments as the ops of fastfuse/ops/pair.py.
//
// No scalar is read on the host: nothing here waits for the device.
#include "fastfuse/cuda_pair.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/cuda_runtime.h"

namespace fastfuse::cuda {
namespace {

namespace py = pybind11;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void check_tensor(const Tensor& t, at::IntArrayRef shape, at::ScalarType dtype, const char* name) {
  TORCH_CHECK_VALUE(t.device().type() == kDevice, name, ": expected a ", kDevice, " tensor, got ", t.device());
  TORCH_CHECK_VALUE(t.sizes() == shape, name, ": shape ", t.sizes(), ", expected ", shape);
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, name, ": dtype ", t.scalar_type(), ", expected ", dtype);
  TORCH_CHECK_VALUE(t.is_contiguous(), name, ": expected a contiguous tensor");
}

constexpr int64_t kMaxRows = 1 << 22;  // tiles are counted in 32 bits

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A 0-dim tensor as the float32 number that kernels read.
struct Scalar {
  Tensor tensor;
  Scalar(const Tensor& t, const char* name) : tensor(t.to(at::kFloat)) {
    TORCH_CHECK_VALUE(t.device().type() == kDevice && t.numel() == 1, name, ": expected one element on ", kDevice,
                      ", got ", t.sizes(), " on ", t.device());
  }
  const float* data() const { return tensor.const_data_ptr<float>(); }
};

// One side of the pairs, prepared; owns what its params point to.
struct Side {
  Tensor rows, numbers;
  PairSide side;
  DType dtype;

  Side(const Tensor& x_, bool normalize, const char* name) {
    TORCH_CHECK_VALUE(x_.dim() == 2 && x_.size(1) > 0, name, ": expected (N, D >= 1), got ", x_.sizes());
    TORCH_CHECK_VALUE(x_.device().type() == kDevice, name, ": expected a ", kDevice, " tensor, got ", x_.device());
    TORCH_CHECK_VALUE(x_.size(0) <= kMaxRows && x_.size(1) <= kMaxRows, name, ": sizes beyond 2^22, got ", x_.sizes());
    TORCH_CHECK_TYPE(x_.scalar_type() == at::kBFloat16 || x_.scalar_type() == at::kHalf, name, ": dtype ",
                     x_.scalar_type(), ", expected bfloat16 or float16");
    const Tensor x = x_.stride(1) == 1 ? x_ : x_.contiguous();
    dtype = x.scalar_type() == at::kBFloat16 ? DType::kBFloat16 : DType::kFloat16;
    const int64_t n = x.size(0), pitch = round_up(x.size(1), 8);
    rows = at::empty({n, pitch}, x.options());
    numbers = at::empty({3, n}, x.options().dtype(at::kFloat));
    float* data = numbers.data_ptr<float>();
    side = {int(n), int(x.size(1)), int(pitch), rows.data_ptr(), data, data + n, data + 2 * n};
    if (n)
      check(pair_features({dtype, x.const_data_ptr(), x.stride(0), normalize, side}, current_stream()),
            "pair_features");
  }
  // The gradient of the features from t.
  Tensor gradient(const Tensor& t, const Scalar& scale, const Scalar* unit, at::ScalarType grad_dtype) const {
    const Tensor grad = at::empty({side.n, side.dim}, t.options().dtype(grad_dtype));
    check(pair_gradient({dtype, side, t.const_data_ptr<float>(), scale.data(), unit ? unit->data() : nullptr,
                         grad.data_ptr(), grad_dtype == at::kFloat ? DType::kFloat32 : dtype},
                        current_stream()),
          "pair_gradient");
    return grad;
  }
};

// What the three ops have in common; owns what the params point to.
struct Pairs {
  Side a;
  std::optional<Side> other;
  Scalar scale;
  std::vector<Tensor> labels;
  PairProblem problem;

  Pairs(const Tensor& a_in, const OptionalTensor& b_in, const Tensor& scale_in, const Tensor& row_key,
        const OptionalTensor& col_key, const OptionalTensor& row_skip, const OptionalTensor& col_skip,
        bool skip_positives, bool normalize)
      : a(a_in, normalize, "a"), scale(scale_in, "scale") {
    if (b_in) {
      TORCH_CHECK_VALUE(b_in->dim() == 2 && b_in->size(1) == a_in.size(1), "b: expected (M, D) with the D of a ",
                        a_in.sizes(), ", got ", b_in->sizes());
      TORCH_CHECK_TYPE(b_in->scalar_type() == a_in.scalar_type(), "b: dtype ", b_in->scalar_type(), ", expected ",
                       a_in.scalar_type());
      other.emplace(*b_in, normalize, "b");
    }
    problem.dtype = a.dtype;
    problem.a = a.side;
    problem.b = b().side;
    problem.scale = scale.data();
    problem.symmetric = !b_in;
    const auto label = [&](const OptionalTensor& t, int n, const char* name) -> const int64_t* {
      if (!t) return nullptr;
      labels.push_back(t->contiguous());
      check_tensor(labels.back(), {n}, at::kLong, name);
      return labels.back().const_data_ptr<int64_t>();
    };
    problem.labels.row_key = label(row_key, a.side.n, "row_key");
    problem.labels.col_key = label(col_key ? col_key : row_key, b().side.n, "col_key");
    problem.labels.row_skip = label(row_skip, a.side.n, "row_skip");
    problem.labels.col_skip = label(col_skip ? col_skip : row_skip, b().side.n, "col_skip");
    problem.labels.skip_positives = skip_positives;
  }
  const Side& b() const { return other ? *other : a; }
  bool empty() const { return a.side.n == 0 || b().side.n == 0; }
  at::TensorOptions options(at::ScalarType dtype) const { return a.rows.options().dtype(dtype); }
};

PairStatistics statistics_of(const Tensor& values, const Tensor& count, int64_t n, const char* name) {
  check_tensor(values, {4, n}, at::kFloat, name);
  check_tensor(count, {n}, at::kInt, name);
  return {values.data_ptr<float>(), count.data_ptr<int32_t>()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_fwd(const Tensor& a, const OptionalTensor& b, const Tensor& scale,
                                                       const Tensor& row_key, const OptionalTensor& col_key,
                                                       const OptionalTensor& row_skip, const OptionalTensor& col_skip,
                                                       bool skip_positives, bool normalize, const std::string& mode,
                                                       bool uniform) {
  const c10::NoGradGuard no_grad;
  const DeviceGuard device(a);
  const Pairs pairs(a, b, scale, row_key, col_key, row_skip, col_skip, skip_positives, normalize);
  const int64_t n = pairs.problem.a.n, m = mode == "both" ? pairs.problem.b.n : 0;
  const auto floats = pairs.options(at::kFloat), ints = pairs.options(at::kInt);
  if (pairs.empty())
    return {at::zeros({4, n}, floats), at::zeros({n}, ints), at::zeros({4, m}, floats), at::zeros({m}, ints)};
  const Tensor rows = at::empty({4, n}, floats), row_count = at::empty({n}, ints);
  const Tensor cols = at::empty({4, m}, floats), col_count = at::empty({m}, ints);
  PairLse p{pairs.problem, statistics_of(rows, row_count, n, "rows"), {}, uniform, nullptr};
  if (m) p.cols = statistics_of(cols, col_count, m, "cols");
  int64_t size = 0;
  check(pair_lse_scratch(p, &size), "pair_softmax_fwd");
  const Tensor scratch = at::empty({size}, floats);
  p.scratch = scratch.data_ptr<float>();
  check(pair_lse(p, current_stream()), "pair_softmax_fwd");
  return {rows, row_count, cols, col_count};
}

#ifdef FASTFUSE_EMULATION
constexpr int64_t kChunkBytes = 128 << 10;  // a few chunks of a small problem
#else
constexpr int64_t kChunkBytes = 256 << 20;  // of G
#endif

// t (+)= g f, summed in float32.
void multiply(const Tensor& t_, const Tensor& g, const Tensor& f, bool accumulate) {
  Tensor t = t_;
#ifdef FASTFUSE_EMULATION  // a CPU's products of 16-bit numbers end in 16 bits
  at::addmm_out(t, t, g.to(at::kFloat), f.to(at::kFloat), accumulate ? 1 : 0);
#else
  accumulate ? at::addmm_out(t, t, g, f, at::kFloat) : at::mm_out(t, g, f, at::kFloat);
#endif
}

struct Gradients {
  Tensor a, b;  // T of each side, float32 (n, pitch); empty where not wanted
};

// Chunks of rows of G by sweep(chunk), and both products of each. Symmetric: all goes to a.
template <class Sweep>
Gradients sweep_chunks(const Pairs& pairs, bool a_wanted, bool b_wanted, const Sweep& sweep) {
  const PairProblem& p = pairs.problem;
  const bool wanted = a_wanted || b_wanted;
  const int64_t all_cols = round_up(p.b.n, kPairBlockN);
  int64_t chunk_rows = round_up(p.a.n, kPairBlockM);
  if (wanted)
    chunk_rows = std::min(chunk_rows, std::max<int64_t>(kChunkBytes / (2 * all_cols) / kPairBlockM, 1) * kPairBlockM);
  // Below the diagonal, inside a chunk, products multiply zeros: an eighth of the square at most.
  if (wanted && p.symmetric) chunk_rows = std::min(chunk_rows, round_up((p.a.n + 7) / 8, kPairBlockM));

  const auto floats = pairs.options(at::kFloat);
  Gradients t{at::empty({0}, floats), at::empty({0}, floats)};
  if (a_wanted) t.a = at::empty({p.a.n, p.a.pitch}, floats);
  if (a_wanted && p.symmetric) t.a.zero_();
  if (b_wanted) t.b = at::empty({p.b.n, p.b.pitch}, floats);
  const Tensor g =
      wanted ? at::empty({std::min<int64_t>(chunk_rows, p.a.n), all_cols}, pairs.a.rows.options()) : Tensor();

  for (int64_t first = 0; first < p.a.n; first += chunk_rows) {
    const int rows = int(std::min(chunk_rows, p.a.n - first));
    const int first_col = p.symmetric ? int(first / kPairBlockN * kPairBlockN) : 0, cols = p.b.n - first_col;
    const PairChunk chunk{int(first), rows, first_col, wanted ? g.data_ptr() : nullptr, round_up(cols, kPairBlockN)};
    if (wanted && p.symmetric) g.zero_();
    sweep(chunk);
    if (!wanted) continue;
    const Tensor chunk_g = g.as_strided({rows, cols}, {chunk.pitch, 1});
    const Tensor own = pairs.a.rows.narrow(0, first, rows);
    if (a_wanted) multiply(t.a.narrow(0, first, rows), chunk_g, pairs.b().rows.narrow(0, first_col, cols), p.symmetric);
    if (a_wanted && p.symmetric) multiply(t.a.narrow(0, first_col, cols), chunk_g.t(), own, true);
    if (b_wanted) multiply(t.b, chunk_g.t(), own, first > 0);
  }
  return t;
}

// (parts, count) zeros for each chunk's sums, double.
struct Sums {
  Tensor all;
  int64_t parts, count;
  std::vector<Tensor> chunks;

  Sums(const Pairs& pairs, int64_t count) : count(count) {
    int n = 0;
    check(pair_parts(&n), "pair_parts");
    parts = n;
    options = pairs.options(at::kDouble);
  }
  double* next() {
    chunks.push_back(at::zeros({parts, count}, options));
    return chunks.back().data_ptr<double>();
  }
  Tensor total() const { return at::cat(chunks).sum(0); }

 private:
  at::TensorOptions options;
};

std::tuple<Tensor, Tensor, Tensor> softmax_bwd(const Tensor& unit_in, const Tensor& a, const OptionalTensor& b,
                                               const Tensor& scale, const Tensor& row_key,
                                               const OptionalTensor& col_key, const OptionalTensor& row_skip,
                                               const OptionalTensor& col_skip, bool skip_positives, bool normalize,
                                               const std::string& mode, double label_smoothing, const Tensor& rows,
                                               const Tensor& row_count, const Tensor& cols, const Tensor& col_count,
                                               const std::vector<bool>& needs) {
  TORCH_CHECK_VALUE(needs.size() == 3, "needs: expected 3 flags, got ", needs.size());
  const c10::NoGradGuard no_grad;
  const DeviceGuard device(a);
  const Pairs pairs(a, b, scale, row_key, col_key, row_skip, col_skip, skip_positives, normalize);
  const Scalar unit(unit_in, "unit");
  const bool db_wanted = needs[1] && b;
  const auto no_pairs = [](const Tensor& t, bool wanted) {
    return at::zeros(wanted ? t.sizes() : at::IntArrayRef{0}, t.options());
  };
  if (pairs.empty()) return {no_pairs(a, needs[0]), no_pairs(b ? *b : a, db_wanted), no_pairs(scale, needs[2])};
  PairSoftmaxBwd p{
      pairs.problem, statistics_of(rows, row_count, pairs.problem.a.n, "rows"), {}, float(label_smoothing), {},
      nullptr};
  if (mode == "both") p.cols = statistics_of(cols, col_count, pairs.problem.b.n, "cols");
  Sums sums(pairs, 1);
  const Gradients t = sweep_chunks(pairs, needs[0], db_wanted, [&](const PairChunk& chunk) {
    p.chunk = chunk;
    p.sums = sums.next();
    check(pair_softmax_bwd(p, current_stream()), "pair_softmax_bwd");
  });
  const Tensor nothing = at::empty({0}, a.options());
  return {needs[0] ? pairs.a.gradient(t.a, pairs.scale, &unit, a.scalar_type()) : nothing,
          db_wanted ? pairs.b().gradient(t.b, pairs.scale, &unit, a.scalar_type()) : nothing,
          needs[2] ? (unit_in * sums.total()[0]).to(scale.scalar_type()).reshape({}) : at::empty({0}, scale.options())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sigmoid(const Tensor& a, const Tensor& b, const Tensor& scale,
                                                           const Tensor& bias_in, const Tensor& row_key,
                                                           const OptionalTensor& col_key,
                                                           const OptionalTensor& row_skip,
                                                           const OptionalTensor& col_skip, bool skip_positives,
                                                           bool normalize, const std::vector<bool>& needs) {
  TORCH_CHECK_VALUE(needs.size() == 4, "needs: expected 4 flags, got ", needs.size());
  const c10::NoGradGuard no_grad;
  const DeviceGuard device(a);
  const Pairs pairs(a, b, scale, row_key, col_key, std::nullopt, std::nullopt, skip_positives, normalize);
  const Scalar bias(bias_in, "bias");
  const auto floats = pairs.options(at::kFloat);
  const auto no_pairs = [&](at::IntArrayRef shape, bool wanted) {
    return at::zeros(wanted ? shape : at::IntArrayRef{0}, floats);
  };
  if (pairs.empty())
    return {at::zeros({}, floats), no_pairs(a.sizes(), needs[0]), no_pairs(b.sizes(), needs[1]), no_pairs({}, needs[2]),
            no_pairs({}, needs[3])};
  PairSigmoid p{pairs.problem, bias.data(), {}, nullptr};
  Sums sums(pairs, 3);
  const Gradients t = sweep_chunks(pairs, needs[0], needs[1], [&](const PairChunk& chunk) {
    p.chunk = chunk;
    p.sums = sums.next();
    check(pair_sigmoid(p, current_stream()), "pair_sigmoid");
  });
  const Tensor total = sums.total().to(at::kFloat), nothing = at::empty({0}, floats);
  return {total[0].clone(), needs[0] ? pairs.a.gradient(t.a, pairs.scale, nullptr, at::kFloat) : nothing,
          needs[1] ? pairs.b().gradient(t.b, pairs.scale, nullptr, at::kFloat) : nothing,
          needs[2] ? total[1].clone() : nothing, needs[3] ? total[2].clone() : nothing};
}

}  // namespace

void register_pair(py::module& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("pair_softmax_fwd", &softmax_fwd, unlocked);
  m.def("pair_softmax_bwd", &softmax_bwd, unlocked);
  m.def("pair_sigmoid", &sigmoid, unlocked);
}

}  // namespace fastfuse::cuda
