#include "cuda/pair_softmax_bwd.cuh"

namespace fastfuse::cuda {
namespace {

template <class Element>
cudaError_t with_element(SoftmaxBwdArguments& args, cudaStream_t stream) {
  return args.p.symmetric || args.p.cols.values ? launch_sweep<SoftmaxBwd<Element, true>>(args, stream)
                                                : launch_sweep<SoftmaxBwd<Element, false>>(args, stream);
}

}  // namespace

cudaError_t pair_softmax_bwd(const PairSoftmaxBwd& p, cudaStream_t stream) {
  SoftmaxBwdArguments args;
  args.p = p;
  args.col_weight = p.symmetric ? 1.0f : float(double(p.a.n) / p.b.n);
  args.row_uniform = float(p.label_smoothing / double(p.b.n));
  args.col_uniform = float(p.label_smoothing / double(p.a.n));
  const cudaError_t error = make_pair_tiles(&args.tiles, p.chunk.first_row, p.chunk.rows, p.b.n, p.symmetric, 0);
  if (error != cudaSuccess) return error;
  return p.dtype == DType::kBFloat16 ? with_element<bf16>(args, stream) : with_element<f16>(args, stream);
}

}  // namespace fastfuse::cuda
