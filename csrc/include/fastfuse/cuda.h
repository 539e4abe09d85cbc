// The CUDA runtime's types that launchers speak, or their stand-ins where the kernels run on the host.
#pragma once

#ifdef FASTFUSE_EMULATION
#include "cuda/emulation/runtime.h"
#else
#include <cuda_runtime_api.h>
#endif
