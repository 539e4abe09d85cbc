#define FASTFUSE_ISA portable
#include "cpu/attention_kernels.h"
