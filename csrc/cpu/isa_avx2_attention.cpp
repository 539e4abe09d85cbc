#define FASTFUSE_ISA avx2
#include "cpu/attention_kernels.h"
