#define FASTFUSE_ISA avx2
#include "cpu/pair_level.h"
