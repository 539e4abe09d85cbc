#define FASTFUSE_ISA avx512
#include "cpu/pair_level.h"
