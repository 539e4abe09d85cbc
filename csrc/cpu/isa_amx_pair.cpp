#define FASTFUSE_ISA amx
#include "cpu/pair_level.h"
