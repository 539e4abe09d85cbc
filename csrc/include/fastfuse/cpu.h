// The CPU runtime that every kernel family shares: instruction-set level, threads, scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastfuse::cpu {

// Each level includes those before it. A family's table of kernels is indexed by level.
enum class Isa : int { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };
inline constexpr int kIsaCount = 5;

Isa best_isa();                  // the best level that is built in and that this machine runs
Isa current_isa();               // best_isa(), capped by FASTFUSE_CPU_ISA and then by set_isa()
const char* isa_name(Isa isa);   // "portable", "avx2", "avx512", "avx512bf16", "amx"
bool set_isa(const char* name);  // a level's name, or "auto"; false if unknown or not available here
bool isa_available(Isa isa);

// Threads come from the caller (torch's own pool): run() calls body(context, 0..workers-1), each in a thread if it can,
// and returns when all are done. One thread may serve several workers, one after the other.
struct ThreadPool {
  void (*run)(int workers, void (*body)(void* context, int worker), void* context);
  int threads;  // 1: run() is never called
};

// Calls task(context, index, worker) for every index in [0, count), handed out to at most `pool.threads` workers,
// consecutive ones at a time, since a task may prefetch for the next, and fewer the fewer are left. Which worker serves
// an index is not determined: write only what the index owns. With one task or thread it runs inline.
void parallel_for(const ThreadPool& pool, int64_t count, void (*task)(void* context, int64_t index, int worker),
                  void* context);

// The calling thread's scratch memory: 64-byte aligned, uninitialised, kept between calls and grown when too small.
// A second call in the same thread invalidates the first one's memory, so a task takes all it needs at once (see
// Arena).
void* thread_scratch(size_t bytes);

// What a forward leaves at most to its backward, which then need not multiply again. More than 64 MiB, so that those of
// 4096 x 4096 floats fit with what goes with them.
constexpr int64_t kKeptBytes = 72 << 20;

// Uninitialised memory of a call or of a result, null if there is none; release takes the size that acquire had. Of large
// blocks up to kSpareBytes stay for later calls: malloc, which trims its heap when a block of 64 KiB is freed, gives them
// back to the system, and new pages take as long to come as many kernels to run.
constexpr size_t kLargeBytes = 64 << 10;
constexpr size_t kSpareBytes = 128 << 20;
void* acquire(size_t bytes);
void release(void* memory, size_t bytes);
void empty_cache();  // gives all spare blocks back

}  // namespace fastfuse::cpu
