// fastfuse._cuda: the kernels for Hopper. TORCH_EXTENSION_NAME names it.
#include <torch/csrc/utils/pybind.h>

#include "bindings/cuda_runtime.h"
#ifdef FASTFUSE_EMULATION
#include "bindings/cuda_watched.h"
#include "cuda/emulation/block.h"
#endif

namespace fastfuse::cuda {
void register_attention(pybind11::module& m);
void register_pair(pybind11::module& m);
const char* sources_hash();
}  // namespace fastfuse::cuda

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("device") = fastfuse::cuda::kDevice == at::kCUDA ? "cuda" : "cpu";
  fastfuse::cuda::register_attention(m);
  fastfuse::cuda::register_pair(m);
#ifndef FASTFUSE_EMULATION
  m.attr("sources") = fastfuse::cuda::sources_hash();
#else
  m.def("set_multiprocessors", &fastfuse::emulation::set_multiprocessors, "Of the machine that is emulated.");
  m.def("set_seed", &fastfuse::emulation::set_seed, "Of the order in which threads run and copies land.");
  m.def("watch_memory", &fastfuse::cuda::watch_memory, "Whether new tensors have ends that the emulation knows.");
#endif
}
