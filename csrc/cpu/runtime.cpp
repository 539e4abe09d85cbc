#include <cstdlib>
#include <cstring>

#include "fastfuse/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastfuse::cpu {
namespace {

constexpr const char* kNames[kIsaCount] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};

#if defined(__x86_64__)
// Linux hands out the 8 KiB of tile state only to processes that ask for it.
bool request_tile_state() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
#else
  return false;
#endif
}
#endif

bool machine_runs(Isa isa) {
#if defined(__x86_64__)
#if defined(FASTFUSE_EMULATED_ISA)
  if (isa > Isa::kAvx2) return machine_runs(Isa::kAvx2);  // emulation/x86.h
#endif
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return machine_runs(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Bf16:
      return machine_runs(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmx: {
      unsigned a, b, c, d;
      if (!machine_runs(Isa::kAvx512Bf16) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
      const bool tiles = (d >> 24 & 1) && (d >> 22 & 1), fp16 = d >> 23 & 1;  // amx-tile, amx-bf16, avx512-fp16
      return tiles && fp16 && request_tile_state();
    }
  }
#endif
  return isa == Isa::kPortable;
}

bool built(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return true;
#if FASTFUSE_HAVE_AVX2
    case Isa::kAvx2:
      return true;
#endif
#if FASTFUSE_HAVE_AVX512
    case Isa::kAvx512:
      return true;
#endif
#if FASTFUSE_HAVE_AVX512BF16
    case Isa::kAvx512Bf16:
      return true;
#endif
#if FASTFUSE_HAVE_AMX
    case Isa::kAmx:
      return true;
#endif
    default:
      return false;
  }
}

Isa find_best() {
  int best = 0;
  for (int i = 1; i < kIsaCount; i++) {
    if (built(Isa(i)) && machine_runs(Isa(i))) best = i;
  }
  return Isa(best);
}

int parse(const char* name) {
  for (int i = 0; i < kIsaCount; i++) {
    if (!std::strcmp(name, kNames[i])) return i;
  }
  return -1;
}

Isa capped_by_environment() {
  const char* name = std::getenv("FASTFUSE_CPU_ISA");
  const int wanted = name ? parse(name) : -1;
  return wanted >= 0 && wanted < int(best_isa()) ? Isa(wanted) : best_isa();
}

Isa& current() {
  static Isa isa = capped_by_environment();
  return isa;
}

struct Scratch {
  void* memory = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(memory); }
};

struct Queue {
  int64_t next, count, shares;  // a worker takes 1 / shares of the tasks that are left, which ends evenly
  void (*task)(void*, int64_t, int);
  void* context;
};

void serve(void* argument, int worker) {
  Queue& queue = *static_cast<Queue*>(argument);
  int64_t first = __atomic_load_n(&queue.next, __ATOMIC_RELAXED);
  while (first < queue.count) {
    const int64_t share = (queue.count - first) / queue.shares, last = first + (share > 1 ? share : 1);
    if (!__atomic_compare_exchange_n(&queue.next, &first, last, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
    for (int64_t index = first; index < last; index++) queue.task(queue.context, index, worker);
    first = __atomic_load_n(&queue.next, __ATOMIC_RELAXED);
  }
}

}  // namespace

Isa best_isa() {
  static const Isa best = find_best();
  return best;
}

Isa current_isa() { return current(); }

bool set_isa(const char* name) {
  const bool automatic = !std::strcmp(name, "auto");
  const int wanted = automatic ? int(best_isa()) : parse(name);
  if (wanted < 0 || !isa_available(Isa(wanted))) return false;
  current() = Isa(wanted);
  return true;
}

const char* isa_name(Isa isa) { return kNames[int(isa)]; }

bool isa_available(Isa isa) { return built(isa) && int(isa) <= int(best_isa()); }

void parallel_for(const ThreadPool& pool, int64_t count, void (*task)(void*, int64_t, int), void* context) {
  if (pool.threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; i++) task(context, i, 0);
    return;
  }
  Queue queue{0, count, 4 * int64_t(pool.threads), task, context};
  pool.run(count < pool.threads ? int(count) : pool.threads, serve, &queue);
}

void* thread_scratch(size_t bytes) {
  static thread_local Scratch scratch;
  if (scratch.size < bytes) {
    std::free(scratch.memory);
    scratch.size = (bytes + 65535) & ~size_t(65535);
    scratch.memory = std::aligned_alloc(4096, scratch.size);
    if (!scratch.memory) std::abort();
  }
  return scratch.memory;
}

}  // namespace fastfuse::cpu
