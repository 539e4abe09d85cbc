// Chooses the instantiation, and runs the kernels in their order.
#include <limits>

#include "cuda/attention_bwd_bias.cuh"
#include "cuda/attention_bwd_config.h"
#include "cuda/attention_bwd_heads_config.h"
#include "cuda/attention_bwd_rows.cuh"

namespace fastfuse::cuda {

template <class C>
cudaError_t launch_attention_bwd_queries(const AttentionBwdArguments& args, cudaStream_t stream);
template <class C>
cudaError_t launch_attention_bwd_heads(const AttentionBwdArguments& args, cudaStream_t stream);
template <class C>
cudaError_t launch_attention_bwd_keys(const AttentionBwdArguments& args, cudaStream_t stream);

namespace {

template <class Element, int kHeadDim, bool kGeneral>
cudaError_t run_tiles(const AttentionBwdArguments& args, cudaStream_t stream) {
  const cudaError_t error =
      launch_attention_bwd_queries<AttentionBwdQueriesConfig<Element, kHeadDim, kGeneral>>(args, stream);
  if (error != cudaSuccess || !(args.p.dk || args.p.dv)) return error;
  return launch_attention_bwd_keys<AttentionBwdKeysConfig<Element, kHeadDim, kGeneral>>(args, stream);
}

template <class Element, int kHeadDim>
cudaError_t with_options(const AttentionBwdArguments& args, cudaStream_t stream) {
  return is_general(args.p) ? run_tiles<Element, kHeadDim, true>(args, stream)
                            : run_tiles<Element, kHeadDim, false>(args, stream);
}

template <class Element>
cudaError_t with_head_dim(const AttentionBwdArguments& args, bool in_one_pass, cudaStream_t stream) {
  const int dim = args.p.dim > args.p.dim_v ? args.p.dim : args.p.dim_v;
  if (in_one_pass) return launch_attention_bwd_heads<AttentionBwdHeadsConfig<Element>>(args, stream);
  if (dim <= 64) return with_options<Element, 64>(args, stream);
  if (dim <= 128) return with_options<Element, 128>(args, stream);
  return with_options<Element, 256>(args, stream);
}

// One pass makes five products and two kernels seven. But a block for each key head may leave multiprocessors idle, and
// between one tile of keys and the next dQ goes to memory and back: of 5 tiles one pass was 10 % faster, of 8 slower.
constexpr int kMostTiles = 6;

cudaError_t runs_in_one_pass(const AttentionBackward& p, bool* in_one_pass) {
  int multiprocessors = 0;
  const cudaError_t error = hopper::persistent_blocks(std::numeric_limits<int>::max(), &multiprocessors);
  if (error != cudaSuccess) return error;
  const int64_t pairs = int64_t(p.batch) * p.kv_heads, rounds = (pairs + multiprocessors - 1) / multiprocessors;
  const bool served = p.dim <= 64 && p.dim_v <= 64 && !is_general(p);
  const bool fills = 5 * rounds * multiprocessors <= 7 * pairs;
  *in_one_pass = served && fills && p.seq_k <= kMostTiles * AttentionBwdHeadsConfig<bf16>::kBlockN;
  return error;
}

}  // namespace

int64_t attention_bwd_rows_size(const AttentionBackward& p) {
  return int64_t(9) * p.batch * p.heads * p.seq_q + p.heads;
}

cudaError_t attention_bwd_sums_size(const AttentionBackward& p, int64_t* size) {
  bool in_one_pass = false;
  const cudaError_t error = runs_in_one_pass(p, &in_one_pass);
  const bool waits = in_one_pass && p.dq && p.seq_k > AttentionBwdHeadsConfig<bf16>::kBlockN;
  *size = waits ? int64_t(AttentionBwdHeadsConfig<bf16>::kHeadDim) * p.batch * p.heads * p.seq_q : 0;
  return error;
}

int64_t attention_bwd_spans_size(const AttentionBackward& p) {
  const QueryRuns runs = query_runs(p);
  return p.lo ? int64_t(4) * p.batch * runs.count * runs.tiles : 0;
}

cudaError_t attention_bwd(const AttentionBackward& p, cudaStream_t stream) {
  if (p.dim > 256 || p.dim_v > 256 || p.dim % 8 || p.dim_v % 8) return cudaErrorInvalidValue;
  const ScoreUnits units(p);
  const AttentionBwdArguments args{p,
                                   query_runs(p),
                                   units,
                                   units.softcap != 0 ? 1 / units.softcap : 0.0f,
                                   dropout_threshold(p),
                                   float(1 / (1 - p.dropout_p))};
  bool in_one_pass = false;
  cudaError_t error = runs_in_one_pass(p, &in_one_pass);
  if (error == cudaSuccess) error = find_row_terms(args, stream);
  if (error != cudaSuccess) return error;
  error = p.dtype == DType::kBFloat16 ? with_head_dim<bf16>(args, in_one_pass, stream)
                                      : with_head_dim<f16>(args, in_one_pass, stream);
  if (error == cudaSuccess) error = sum_rows(args, stream);
  return error == cudaSuccess ? sum_bias(args, stream) : error;
}

}  // namespace fastfuse::cuda
