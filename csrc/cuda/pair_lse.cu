#include "cuda/pair_lse.cuh"
#include "cuda/pair_statistics.cuh"

namespace fastfuse::cuda {
namespace {

struct Parts {
  int64_t rows, cols, col_pitch;  // floats

  Parts(const PairLse& p, const PairTiles& tiles)
      : rows(int64_t(tiles.row_parts()) * kPlanes * kPairBlockM),
        cols(0),
        col_pitch(int64_t(tiles.col_end) * kPairBlockN) {
    if (p.symmetric || p.cols.values) cols = int64_t(tiles.blocks) * 2 * col_planes(p.uniform) * col_pitch;
  }
};

template <class Element>
cudaError_t with_element(LseArguments& args, cudaStream_t stream) {
  return args.col_parts ? launch_sweep<Lse<Element, true>>(args, stream)
                        : launch_sweep<Lse<Element, false>>(args, stream);
}

}  // namespace

cudaError_t pair_lse_scratch(const PairLse& p, int64_t* size) {
  PairTiles tiles;
  const cudaError_t error = make_pair_tiles(&tiles, 0, p.a.n, p.b.n, p.symmetric, kPairSegmentBits);
  if (error != cudaSuccess) return error;
  const Parts parts(p, tiles);
  *size = parts.rows + parts.cols;
  return cudaSuccess;
}

cudaError_t pair_lse(const PairLse& p, cudaStream_t stream) {
  LseArguments args;
  args.p = p;
  cudaError_t error = make_pair_tiles(&args.tiles, 0, p.a.n, p.b.n, p.symmetric, kPairSegmentBits);
  if (error != cudaSuccess) return error;
  const Parts parts(p, args.tiles);
  args.row_parts = p.scratch;
  args.col_parts = parts.cols ? p.scratch + parts.rows : nullptr;
  args.col_pitch = parts.col_pitch;
  error = p.dtype == DType::kBFloat16 ? with_element<bf16>(args, stream) : with_element<f16>(args, stream);
  if (error != cudaSuccess) return error;
  LineStatisticsArguments merge{args.tiles,     args.row_parts, p.symmetric ? args.col_parts : nullptr,
                                args.col_pitch, p.a.n,          p.b.n,
                                p.uniform,      p.rows};
  error = merge_statistics(merge, stream);
  if (error != cudaSuccess || p.symmetric || !p.cols.values) return error;
  merge.row_parts = nullptr;
  merge.col_parts = args.col_parts;
  merge.lines = p.b.n;
  merge.others = p.a.n;
  merge.to = p.cols;
  return merge_statistics(merge, stream);
}

}  // namespace fastfuse::cuda
