#include "isa.h"

#define IMBAL_ISA portable
#define IMBAL_BYTES 16
#include "isa_body.h"
const imbal::Backend* const imbal::kPortable = &imbal::portable::backend;
