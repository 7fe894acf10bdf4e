// Memory for large outputs, kept from one call to the next.
#pragma once

#include <cstdint>
#include <vector>

#include "tensors.h"

namespace imbal {

// An uninitialised contiguous tensor on the CPU.
//
// A training step makes a gradient of the same size each time. malloc maps one of 32 MiB or more anew for each step
// and gives it back afterwards, smaller ones too where others come and go, and the page faults may cost several times
// what is computed. Here the memory of a large tensor stays mapped when the tensor is gone, for the next one; of
// all but the latest 128 MiB the system may take the pages meanwhile, whenever it wants some (MADV_FREE).
Tensor new_large(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype);

// Whether memory is kept; off lets go of what is.
void keep_memory(bool keep);

}  // namespace imbal
