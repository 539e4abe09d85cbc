#include "cuda/pair_sigmoid.cuh"

namespace fastfuse::cuda {

cudaError_t pair_parts(int* parts) {
  const cudaError_t error = persistent_blocks(INT32_MAX, parts);
  *parts *= PairConfig<bf16, 1, false>::kConsumerWarps;
  return error;
}

cudaError_t pair_sigmoid(const PairSigmoid& p, cudaStream_t stream) {
  SigmoidArguments args;
  args.p = p;
  const cudaError_t error = make_pair_tiles(&args.tiles, p.chunk.first_row, p.chunk.rows, p.b.n, false, 0);
  if (error != cudaSuccess) return error;
  return p.dtype == DType::kBFloat16 ? launch_sweep<Sigmoid<bf16>>(args, stream)
                                     : launch_sweep<Sigmoid<f16>>(args, stream);
}

}  // namespace fastfuse::cuda
