// The hardware's vocabulary, namespace fastfuse::hopper: the real one, or the one that the host executes.
// Kernels use nothing of the hardware but what is declared there. README.md tells how to write one.
#pragma once

#ifdef FASTFUSE_EMULATION
#include "cuda/emulation/async_copy.h"
#include "cuda/emulation/barrier.h"
#include "cuda/emulation/launch.h"
#include "cuda/emulation/math.h"
#include "cuda/emulation/mbarrier.h"
#include "cuda/emulation/memory.h"
#include "cuda/emulation/tma.h"
#include "cuda/emulation/warp.h"
#include "cuda/emulation/wgmma.h"
#else
#include "cuda/hopper/async_copy.h"
#include "cuda/hopper/barrier.h"
#include "cuda/hopper/launch.h"
#include "cuda/hopper/math.h"
#include "cuda/hopper/mbarrier.h"
#include "cuda/hopper/memory.h"
#include "cuda/hopper/tma.h"
#include "cuda/hopper/warp.h"
#include "cuda/hopper/wgmma.h"
#endif
