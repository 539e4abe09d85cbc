// What the kernels were built from.
namespace fastfuse::cuda {

const char* sources_hash() { return FASTFUSE_CUDA_SOURCES; }

}  // namespace fastfuse::cuda
