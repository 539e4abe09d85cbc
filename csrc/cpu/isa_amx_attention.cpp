#define FASTFUSE_ISA amx
#include "cpu/attention_kernels.h"
