// Retrieval on CPU tensors: check -> fill params -> launch. Arguments as the ops of fastfuse/ops/retrieval.py.
#include "fastfuse/retrieval.h"

#include <torch/csrc/utils/pybind.h>

#include <tuple>

#include "bindings/features.h"

namespace fastfuse {
namespace {

namespace py = pybind11;
using at::Tensor;

void check_pair(const Tensor& queries, const Tensor& keys) {
  TORCH_CHECK_VALUE(queries.dim() == 2 && keys.dim() == 2 && queries.size(1) == keys.size(1),
                    "keys: expected (M, D) with the D of queries ", queries.sizes(), ", got ", keys.sizes());
  check_dtype(keys, queries.scalar_type(), "keys");
  TORCH_CHECK_VALUE(keys.size(0) <= UINT32_MAX, "keys: expected less than 2^32 rows, got ", keys.size(0));
}

std::tuple<Tensor, Tensor> topk(const Tensor& queries_in, const Tensor& keys_in, int64_t k, bool normalize) {
  const Tensor queries = with_contiguous_rows(queries_in), keys = with_contiguous_rows(keys_in);
  check_pair(queries, keys);
  TORCH_CHECK_VALUE(k >= 1 && k <= keys.size(0), "k: expected 1 <= k <= ", keys.size(0), ", got ", k);
  const int64_t n = queries.size(0);
  const Tensor scores = at::empty({n, k}, queries.options().dtype(at::kFloat));
  const Tensor indices = at::empty({n, k}, queries.options().dtype(at::kLong));
  if (n) {
    const TopkParams p{features_of(queries, "queries"), features_of(keys, "keys"),  normalize, k,
                       scores.data_ptr<float>(),        indices.data_ptr<int64_t>()};
    py::gil_scoped_release release;
    cpu::similarity_topk(p, torch_threads());
  }
  return {scores, indices};
}

Tensor ranks(const Tensor& queries_in, const Tensor& keys_in, const Tensor& positives_in, const Tensor& first_in,
             const Tensor& last_in, bool normalize) {
  const Tensor queries = with_contiguous_rows(queries_in), keys = with_contiguous_rows(keys_in);
  check_pair(queries, keys);
  const int64_t n = queries.size(0), m = keys.size(0);
  for (const Tensor& t : {positives_in, first_in, last_in}) {
    check_dtype(t, at::kLong, "positives");
    TORCH_CHECK_VALUE(t.is_cpu() && t.dim() == 1, "positives: expected 1-D CPU tensors, got ", t.sizes());
  }
  check_shape(first_in, {n}, "first");
  check_shape(last_in, {n}, "last");
  const Tensor positives = positives_in.contiguous(), first = first_in.contiguous(), last = last_in.contiguous();
  const Tensor out = at::full({n}, m, first.options());
  if (n == 0 || m == 0) return out;
  const int64_t length = positives.numel();
  TORCH_CHECK_VALUE(length == 0 || positives.max().item<int64_t>() < m, "positives: expected indices below ", m);
  TORCH_CHECK_VALUE(first.min().item<int64_t>() >= 0 && last.max().item<int64_t>() <= length,
                    "first, last: expected ranges within the ", length, " positives");
  const RanksParams p{features_of(queries, "queries"),
                      features_of(keys, "keys"),
                      normalize,
                      positives.const_data_ptr<int64_t>(),
                      first.const_data_ptr<int64_t>(),
                      last.const_data_ptr<int64_t>(),
                      out.data_ptr<int64_t>()};
  py::gil_scoped_release release;
  cpu::retrieval_ranks(p, torch_threads());
  return out;
}

}  // namespace

void register_retrieval(py::module& m) {
  m.def("similarity_topk", &topk);
  m.def("retrieval_ranks", &ranks);
}

}  // namespace fastfuse
