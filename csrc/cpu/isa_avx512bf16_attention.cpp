#define FASTFUSE_ISA avx512bf16
#include "cpu/attention_kernels.h"
