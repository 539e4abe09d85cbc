#define FASTFUSE_ISA avx512bf16
#include "cpu/pair_level.h"
