// Memory for what a forward leaves to its backward.
#pragma once

#include <ATen/ATen.h>

namespace fastfuse {

// Uninitialised bytes. Large blocks come from those that earlier calls have given back, of which up to cpu::kKeptBytes in
// all stay allocated: the pages of a new block of 64 MiB take 8 ms, half of what keeping it saves.
at::Tensor kept_memory(int64_t bytes);

}  // namespace fastfuse
