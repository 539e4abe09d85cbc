#define FASTFUSE_ISA portable
#include "cpu/pair_level.h"
