// A producer warpgroup and two consumers, and how they divide the registers.
#pragma once

namespace fastfuse::cuda {

struct ProducerAndConsumers {
  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kConsumerThreads = 128 * kConsumers, kConsumerWarps = 4 * kConsumers;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  // A block of 384 starts with 168 a thread; it waits forever for more than it had.
  static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 168 * (kConsumers + 1));
};

}  // namespace fastfuse::cuda
